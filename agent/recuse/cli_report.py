"""What is added up: coverage of logins, and the report on what was not recorded."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from typing import Any

from recuse import config, coverage, witness
from recuse.archive import LedgerArchive, open_archive
from recuse.cast import printable
from recuse.console import Call, local, word
from recuse.errors import AccessDenied, DoctorFound
from recuse.records import FINDINGS, Finding

COVERAGE_DAYS = 1


def cover(call: Call) -> int:
    """Count logins as other programs saw them, and enter what the ledger does not have.

    Raises: DoctorFound if anything differs.
    """
    since = call.args.since or datetime.now(timezone.utc) - timedelta(days=COVERAGE_DAYS)
    ignored = config.load(call.paths.config).session.ignored_services
    call.control("settle")
    traces, reaches_back_ns = witness.read_journal(since)
    traces += witness.read_wtmp(str(call.paths.root), since)
    try:
        ledgers = [
            one.path for one in open_archive(call.paths.root) if isinstance(one, LedgerArchive)
        ]
        kept = witness.read_ledgers(ledgers, since)
    except PermissionError as error:
        raise AccessDenied(f"{error.filename} is not for you to read", "run it as root") from None
    limits = coverage.Limits(
        kept.enabled_ns,
        tuple(kept.off),
        ignored,
        coverage.SETTLE_SECONDS if call.args.settle is None else call.args.settle,
        witnessed_from_ns=max(reaches_back_ns, int(since.timestamp() * 1e9)),
    )
    counted = coverage.reconcile(coverage.merge(traces), kept.kept(), limits, time.time_ns())
    new = 0
    for finding in counted.findings:
        if finding.key not in kept.view.findings:
            new += bool(call.control("finding", finding=vars(finding)).get("new"))
    _show(call, counted, new)
    if counted.findings:
        many = len(counted.findings)
        raise DoctorFound(
            "%d login%s not as the ledger has it, %d new" % (many, "" if many == 1 else "s", new),
            "each is an entry of the ledger: recuse verify lists them",
        )
    return 0


def _show(call: Call, counted: coverage.Reconciled, new: int) -> None:
    if call.args.json:
        found: dict[str, Any] = dict(vars(counted))
        found["findings"] = [vars(one) for one in counted.findings]
        call.console.json({**found, "new": new})
        return
    call.console.print(
        "%d logins seen by others: %d in the ledger, %d under way, %d before recuse was enabled"
        % (counted.sightings, counted.matched, counted.under_way, counted.before)
    )
    for one in counted.findings:
        call.console.print("FAIL  " + _words(one))


def _words(one: Finding) -> str:
    words = "%s: %s by %s" % (FINDINGS[one.what], printable(one.user), word(one.service or "login"))
    if one.source:
        words += " from %s" % word(one.source)
    if one.tty:
        words += " on %s" % word(one.tty)
    words += ", %s" % local(one.seen)
    if one.witnesses:
        words += ", seen by %s" % ", ".join(one.witnesses)
    if one.login:
        words += " (%s)" % word(one.login)
    return words + (", while recuse was disabled" if one.disabled else "")
