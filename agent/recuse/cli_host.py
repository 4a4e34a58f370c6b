"""The commands about this host: `recuse doctor`, `enable`, `disable` and `enroll`."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

from recuse import checkup, cli_report, config, hostsetup
from recuse.cast import printable
from recuse.console import Add, Call, UsageError, as_json, moment, seconds
from recuse.control import ask
from recuse.errors import AccessDenied, DoctorFound, RecuseError

TELL_SECONDS = 2.0  # a host whose agent hangs can be disabled without long waits


def add_commands(add: Add, commands: Any) -> None:
    """Add `doctor`, `enable`, `disable` and `enroll`."""
    one = add("doctor", doctor, "look for whatever would break logins or recording")
    one.add_argument(
        "--coverage", action="store_true", help="count logins that others saw, and compare"
    )
    one.add_argument("--since", metavar="TIME", type=moment, help="of --coverage; default: 1d")
    one.add_argument(
        "--settle",
        metavar="TIME",
        type=seconds,
        default=None,
        help="of --coverage: younger logins are under way; default: 30",
    )
    as_json(one)
    for name, words in (
        ("enable", "make logins go through recuse"),
        ("disable", "take recuse out of logins"),
    ):
        one = add(name, enable if name == "enable" else disable, words)
        one.add_argument("-n", "--dry-run", action="store_true", help="only say what would change")

    one = add("enroll", enroll, "introduce this host to its collector")
    one.add_argument("--url", metavar="URL", help="default: [central] url")
    one.add_argument(
        "--token", required=True, metavar="TOKEN", help="one-time token; - reads it from stdin"
    )
    one.add_argument("--ca", metavar="FILE", help="authorities of its certificate, PEM")


def doctor(call: Call) -> int:
    if call.args.coverage:
        return cli_report.cover(call)
    if call.args.since is not None or call.args.settle is not None:
        raise UsageError("--since and --settle are for --coverage")
    checks = checkup.look(call.machine())
    if call.args.json:
        call.console.print(checkup.to_json(checks))
    else:
        marks = {"ok": "ok  ", "warn": "WARN", "fail": "FAIL"}
        for check in checks:
            call.console.print(
                "%s  %-14s %s" % (marks[check.state], check.name, printable(check.words))
            )
            if check.hint and check.state != "ok":
                call.console.print("%22s%s" % ("-> ", printable(check.hint)))
    bad = [check.name for check in checks if check.state == "fail"]
    if bad:
        raise DoctorFound("%d of %d checks failed: %s" % (len(bad), len(checks), ", ".join(bad)))
    return 0


def _report_change(call: Call, change: hostsetup.Change, already: str) -> int:
    would = "would do" if call.args.dry_run else "done"
    for line in change.done:
        call.console.print("%s: %s" % (would, line))
    if call.args.dry_run and change.diff:
        call.console.out.write(change.diff)
    if not change.done:
        call.console.print(already)
    for line in change.warnings:
        call.console.warn(printable(line))
    return 0


def _tell_agent(call: Call) -> None:
    """Have the agent enter how logins are wired now; if it is away, it looks when it starts."""
    with contextlib.suppress(RecuseError):
        ask({"verb": "look"}, str(call.paths.control_socket), TELL_SECONDS)


def enable(call: Call) -> int:
    change = hostsetup.enable(call.machine(), call.args.dry_run)
    if change.done and not call.args.dry_run:
        _tell_agent(call)
    _report_change(call, change, "logins go through recuse already")
    if change.done and not call.args.dry_run:
        call.console.hint("sessions that are open now are not recorded; new ones are")
    return 0


def disable(call: Call) -> int:
    try:
        change = hostsetup.disable(call.machine(), call.args.dry_run)
    except DoctorFound:  # some of it may be out
        _tell_agent(call)
        raise
    if change.done and not call.args.dry_run:
        _tell_agent(call)
    return _report_change(call, change, "logins do not go through recuse")


def enroll(call: Call) -> int:
    token = call.args.token
    if token == "-":
        token = sys.stdin.readline().strip()
    # Only hosts have what this needs; an auditor's machine does without.
    from recuse import ship

    url = call.args.url or config.load(call.paths.config).central.url
    if not url.startswith("https://"):
        raise UsageError(
            "central storage is %s: there is no collector to enrol with" % printable(url),
            "give --url https://HOST:8443, and set it as url in [central] of recuse.toml",
        )
    if os.geteuid() != 0:
        raise AccessDenied("only root can enrol this host", "run it with sudo")
    ca = Path(call.args.ca) if call.args.ca else config.load(call.paths.config).central.ca
    told = ship.enroll(url, token, call.paths, ca)
    call.console.print("%s is enrolled with %s" % (told.prefix, printable(url)))
    call.console.print("collector key %s" % told.fingerprint)
    call.console.hint("compare that with what recuse-collector shows there")
    if config.load(call.paths.config).central.url != url:
        call.console.hint('set url = "%s" in [central] of recuse.toml' % printable(url))
    return 0
