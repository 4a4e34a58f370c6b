"""What is added up: coverage of logins, and the report on what was not recorded."""

from __future__ import annotations

import os
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Iterator

from recuse import amounts, config, coverage, optout, policytoml, witness
from recuse.archive import LedgerArchive, open_archive
from recuse.cast import printable
from recuse.console import Add, Call, UsageError, archive, as_json, local, moment, table, word
from recuse.errors import AccessDenied, DoctorFound, NotFound, PolicyError
from recuse.records import FINDINGS, Finding

COVERAGE_DAYS = 1
KEY_BYTES = 16  # a key that pseudonyms are made with has at least that many
SHOWN = 15  # groups of a table or plot; JSON has all
GRANTS = 50  # of a page
TITLES = {
    "user": "user", "team": "team (role or group)", "rule": "rule", "reason": "reason",
    "day": "day", "hour": "hour of the day, UTC", "host": "host", "host_tag": "host tag",
}  # fmt: skip


def add_commands(add: Add, commands: Any) -> None:
    """Add `report`."""
    one = add("report", report, "say how much was exempt from recording, for whom and why")
    one.add_argument("--since", metavar="TIME", type=moment, help="begun then or later")
    one.add_argument("--until", metavar="TIME", type=moment, help="begun before")
    one.add_argument("--html", metavar="FILE", help="write a page with plots")
    one.add_argument("--works-council", action="store_true", help="with pseudonyms; see the manual")
    one.add_argument(
        "-k", "--smallest-group", type=int, metavar="N", help="of --works-council; default: 5"
    )
    one.add_argument(
        "--pseudonym-key", metavar="FILE", help="of --works-council; default: one for each report"
    )
    archive(one)
    as_json(one)


# Coverage


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
        many = amounts.number(len(counted.findings), "login")
        raise DoctorFound(
            "%s not as the ledger has it, %d new" % (many, new),
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
        "%s seen by others: %d in the ledger, %d under way, %d before recuse was enabled"
        % (
            amounts.number(counted.sightings, "login"),
            counted.matched,
            counted.under_way,
            counted.before,
        )
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


# The report


def report(call: Call) -> int:
    """Add up what was exempt, and write it as text, JSON or a page."""
    args = call.args
    options = _options(call)
    view = optout.Optouts()
    call.catalog(view)
    made = optout.report(view.samples(), _rules(call), options)
    if args.html is not None:
        page = _page(made)
        try:
            Path(args.html).write_text(page, encoding="utf-8")
        except OSError as error:
            raise NotFound(
                "%s cannot be written: %s" % (printable(args.html), (error.strerror or "").lower())
            ) from None
    if args.json:
        call.console.json(made.to_json())
    elif args.html is None:
        for line in _lines(made):
            call.console.print(line)
    return 0


def _options(call: Call) -> optout.Options:
    args = call.args
    if not args.works_council and (args.smallest_group is not None or args.pseudonym_key):
        raise UsageError("--smallest-group and --pseudonym-key are for --works-council")
    smallest = optout.SMALLEST_GROUP if args.smallest_group is None else args.smallest_group
    if smallest < 2:
        raise UsageError("a smallest group of %d hides nobody" % smallest, "give 2 or more")
    key = None
    if args.works_council:
        key = os.urandom(32) if args.pseudonym_key is None else _key(args.pseudonym_key)
    since = None if args.since is None else int(args.since.timestamp() * 1e9)
    until = None if args.until is None else int(args.until.timestamp() * 1e9)
    return optout.Options(time.time_ns(), since, until, key, smallest)


def _key(path: str) -> bytes:
    try:
        key = Path(path).read_bytes().strip()
    except OSError as error:
        words = "%s: %s" % (printable(path), (error.strerror or str(error)).lower())
        raise NotFound(words, "make one: head -c 32 /dev/urandom >FILE") from None
    if len(key) < KEY_BYTES:
        raise UsageError(
            "the key in %s has %d bytes: users could be guessed" % (printable(path), len(key)),
            "make one: head -c 32 /dev/urandom >FILE",
        )
    return key


def _rules(call: Call) -> list[optout.Rule]:
    """Give the exempt rules of this host, used or not; of an archive only those used are known."""
    if call.args.dir is not None:
        return []
    try:
        found = policytoml.parse_policy(config.read_policy_dir(call.paths.policy_dir))
    except PolicyError as error:
        call.console.warn("%s, ignoring rules that were not used" % error.message)
        return []
    return [
        optout.Rule(one.name, one.owner, None if one.expires is None else one.expires.isoformat())
        for one in found.rules
        if one.effect == "exempt"
    ]


def _page(made: optout.Report) -> str:
    # Only who wants a page needs it.
    from jinja2 import Environment, FileSystemLoader

    where = Path(__file__).with_name("templates")
    pages = Environment(loader=FileSystemLoader(str(where)), autoescape=True)
    return pages.get_template("report.html").render(
        report=made,
        bars={
            name: optout.bars(row, SHOWN, made.total.sessions if name in optout.OF_ALL else None)
            for name, row in made.by.items()
        },
        duration=amounts.span(made.exempt_seconds),
        others=optout.OTHERS,
        most=GRANTS,
        soon=optout.EXPIRING_DAYS,
    )


def _percent(rate: float) -> str:
    return "%.1f %%" % (rate * 100)


def _lines(made: optout.Report) -> Iterator[str]:
    total = made.total
    yield "%d of %s exempt from recording: %s, %s in all" % (
        total.exempt, amounts.number(total.sessions, "session"), _percent(total.rate),
        amounts.span(made.exempt_seconds),
    )  # fmt: skip
    yield "hosts: %s" % (", ".join(map(word, made.hosts)) or "-")
    yield "outcomes: %s" % (
        ", ".join("%d %s" % (number, name) for name, number in made.outcomes.items()) or "-"
    )
    if made.works_council:
        yield "users stand under pseudonyms, groups of fewer than %s under %r" % (
            made.smallest_group, optout.OTHERS,
        )  # fmt: skip
    for name, shares in made.by.items():
        rows = [["EXEMPT", "OF", "RATE", TITLES[name].upper()]]
        rows += [
            [str(one.exempt), str(one.sessions), _percent(one.rate), word(one.name)]
            for one in shares[:SHOWN]
        ]
        yield from _block("by %s" % TITLES[name], rows, len(shares) - SHOWN)
    rows = [["DAYS LEFT", "ENDS", "EXEMPT", "OWNER", "RULE"]]
    for rule in made.expiring[:SHOWN]:
        mark = " !" if rule.days is not None and rule.days <= optout.EXPIRING_DAYS else ""
        used = "few" if rule.exempt is None else str(rule.exempt)
        days = word(rule.days) + mark
        rows.append([days, word(rule.expires), used, word(rule.owner), word(rule.rule)])
    yield from _block("exempt rules, the next to end first", rows, len(made.expiring) - SHOWN)
    rows = [["EXEMPT", "OWNER"]]
    rows += [[str(one.exempt), word(one.name)] for one in made.owners[:SHOWN]]
    yield from _block("owners", rows, len(made.owners) - SHOWN)
    rows = [["EXEMPT", "GRANT", "USER", "REASON"]]
    rows += [
        [str(one.exempt), word(one.grant), word(one.user), word(one.reason)]
        for one in made.grants[:SHOWN]
    ]
    yield from _block("grants", rows, len(made.grants) - SHOWN)


def _block(title: str, rows: list[list[str]], more: int) -> Iterator[str]:
    if len(rows) == 1:
        return
    yield ""
    yield title
    for line in table(rows):
        yield "  " + line
    if more > 0:
        yield "  and %d more: see --json" % more
