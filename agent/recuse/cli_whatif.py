"""The commands of `recuse policy` that try a policy out: replay, lint, test."""

from __future__ import annotations

import grp
import os
import pwd
import stat
import time
from datetime import datetime, timedelta, timezone
from typing import Any, Callable, Iterator, List, Optional

from recuse import amounts, lint, policytest, records, whatif
from recuse.cast import printable
from recuse.console import (
    Add,
    Call,
    Console,
    archive,
    as_json,
    local,
    moment,
    policy_files,
    table,
    word,
)
from recuse.errors import ExpectationsFailed, LintFound, NotFound
from recuse.lint import Finding
from recuse.policy import Policy
from recuse.policytoml import parse_policy

MONTH_DAYS = 30
TELL_SECONDS = 0.2
TELL_EVERY = 256  # entries between looks at the clock


def add_commands(add: Add, inner: Any) -> None:
    """Add to the commands below `policy`."""
    one = add("replay", replay, "say what another policy would have made of past sessions", inner)
    _policy(one)
    one.add_argument("--since", metavar="TIME", type=moment, help="begun then or later")
    one.add_argument("--until", metavar="TIME", type=moment, help="begun before")
    archive(one)
    as_json(one)

    one = add("lint", lint_policy, "find what is allowed in a policy but hardly meant", inner)
    one.add_argument("files", nargs="*", metavar="FILE", help="files or directories")
    one.add_argument(
        "--days", type=int, default=30, metavar="N", help="how near an expiry is soon; default: 30"
    )
    one.add_argument(
        "--sessions", action="store_true", help="look at last month's sessions of this host, too"
    )
    one.add_argument(
        "--percent", type=float, default=10.0, metavar="N",
        help="of --sessions: how many a rule may exempt; default: 10",
    )  # fmt: skip
    one.add_argument(
        "--accounts", action="store_true", help="look whether this host knows the users and groups"
    )
    one.add_argument(
        "--ignore", action="append", default=[], choices=sorted(lint.CODES), metavar="CODE"
    )
    archive(one)
    as_json(one)

    one = add("test", test, "check whether a policy does what is expected of it", inner)
    one.add_argument("tests", nargs="+", metavar="FILE", help="expectations")
    _policy(one)
    as_json(one)


def _policy(made: Any) -> None:
    made.add_argument(
        "--policy", action="append", default=[], metavar="PATH", dest="files",
        help="files or directories in place of this host's policy",
    )  # fmt: skip


# Replay


class _Teller:
    """Says on a terminal how far long work is."""

    def __init__(self, console: Console, words: str) -> None:
        self._console = console
        self._words = words
        self._watched = bool(console.err.isatty())
        self._next = time.monotonic() + TELL_SECONDS
        self.count = 0

    def step(self) -> None:
        self.count += 1
        if self._watched and self.count % TELL_EVERY == 0 and time.monotonic() >= self._next:
            self._next = time.monotonic() + TELL_SECONDS
            done = amounts.number(self.count, "entry", "entries")
            self._console.err.write("\r\x1b[K%s: %s" % (self._words, done))
            self._console.err.flush()

    def done(self) -> None:
        if self._watched:
            self._console.err.write("\r\x1b[K")
            self._console.err.flush()


class _View(records.View):
    """Decides entries again in place of adding them up."""

    def __init__(self, again: whatif.Replay, teller: _Teller) -> None:
        super().__init__()
        self._again = again
        self._teller = teller

    def apply(self, entry: records.Entry) -> None:
        self._teller.step()
        self._again.apply(entry)


def _replay(call: Call, again: whatif.Replay) -> whatif.Replay:
    teller = _Teller(call.console, "replaying")
    try:
        call.catalog(_View(again, teller))
    finally:
        teller.done()
    return again


def replay(call: Call) -> int:
    """Decide past sessions again by another policy, and say what would have changed."""
    args, console = call.args, call.console
    parsed = parse_policy(policy_files(call))
    report = _replay(call, whatif.Replay(parsed, args.since, args.until)).report()
    if args.json:
        times = {
            name: None if value is None else value.astimezone(timezone.utc).isoformat()
            for name, value in (("since", args.since), ("until", args.until))
        }
        console.json({**times, **report.to_json()})
        return 0
    unchanged = ", ".join("%d %s" % (report.unchanged[one], one) for one in whatif.VERDICTS)
    same = sum(report.unchanged.values())
    sessions = amounts.number(report.sessions, "session")
    console.print("%s, of which %d unchanged (%s)" % (sessions, same, unchanged))
    for name, verdict in whatif.NEWLY.items():
        changes = report.group(verdict)
        console.print("%-15s %d" % (name.replace("_", " ") + ":", len(changes)))
        if changes:
            for what, counts in (
                ("rule", whatif.by_rule(changes)),
                ("host tag", whatif.by_host_tag(changes)),
            ):
                told = ", ".join("%s %d" % (printable(one), n) for one, n in counts.items())
                console.print("  by %-10s %s" % (what, told))
    if report.uncertain:
        console.warn(
            "%s had facts that are not known: see unknown in --json"
            % amounts.number(report.uncertain, "session")
        )
    if report.skipped:
        skipped = amounts.number(report.skipped, "entry", "entries")
        console.warn("ignoring %s that cannot be read: see recuse verify" % skipped)
    if report.changes:
        console.print()
        for line in table(list(_changes(report))):
            console.print(line)
    return 0


def _changes(report: whatif.Report) -> Iterator[List[str]]:
    yield ["SESSION", "STARTED", "USER", "HOST", "SERVICE", "WAS", "WOULD BE", "RULE"]
    for one in report.changes:
        yield [
            one.id, local(one.started), word(one.user), word(one.host), word(one.service),
            one.before, one.after + ("?" if one.unknown else ""), word(one.after_rule),
        ]  # fmt: skip


# Lint


def lint_policy(call: Call) -> int:
    """Find what is hardly meant. Raises: LintFound if there is anything."""
    args, console = call.args, call.console
    parsed = parse_policy(policy_files(call))
    now = datetime.now(timezone.utc)
    exempted = None
    if args.sessions or args.dir is not None:
        since = now - timedelta(days=MONTH_DAYS)
        exempted = _replay(call, whatif.Replay(parsed, since)).exempted()
    findings = lint.lint(
        parsed,
        now.date(),
        days=args.days,
        exempted=exempted,
        percent=args.percent,
        is_user=_knows(pwd.getpwnam) if args.accounts else None,
        is_group=_knows(grp.getgrnam) if args.accounts else None,
    )
    findings += _programs(parsed)
    findings = [one for one in findings if one.code not in args.ignore]
    findings.sort(key=lambda one: (one.file, one.line, one.code))
    if args.json:
        console.json(
            {
                "ok": not findings, "rules": len(parsed.rules),
                "sessions": 0 if exempted is None else exempted.sessions,
                "findings": [vars(one) for one in findings],
            }
        )  # fmt: skip
    for one in findings if not args.json else ():
        console.print(printable(str(one)))
    if findings:
        raise LintFound(
            "%s in the policy" % amounts.number(len(findings), "finding"),
            "see recuse(1) for what the codes mean; --ignore CODE leaves one out",
        )
    if not args.json:
        console.print("nothing found in %s" % amounts.number(len(parsed.rules), "rule"))
    return 0


def _knows(look_up: Callable[[str], object]) -> Callable[[str], bool]:
    def known(name: str) -> bool:
        try:
            look_up(name)
        except KeyError:
            return False
        return True

    return known


def _programs(parsed: Policy) -> Iterator[Finding]:
    """Find programs that are not there, or that somebody but root may change."""
    for ask in parsed.asks.values():
        if not ask.program:
            continue
        fault = _fault_of(ask.program[0])
        if fault is not None:
            yield Finding("program", ask.file, ask.line, "ask %r: %s" % (ask.name, fault))


def _fault_of(path: str) -> Optional[str]:
    try:
        found = os.stat(path)
    except OSError as error:
        return "%s: %s" % (path, (error.strerror or str(error)).lower())
    if not stat.S_ISREG(found.st_mode) or not found.st_mode & 0o111:
        return "%s is no program" % path
    place = os.path.realpath(path)
    while True:
        found = os.stat(place)
        sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
        if found.st_uid != 0 or (found.st_mode & 0o022 and not sticky):
            return "%s can be changed by others than root: %s" % (path, place)
        if place == "/":
            return None
        place = os.path.dirname(place)


# Test


def test(call: Call) -> int:
    """Check expectations. Raises: ExpectationsFailed if the policy does not meet them all."""
    args, console = call.args, call.console
    parsed = parse_policy(policy_files(call))
    sources = []
    for path in args.tests:
        try:
            with open(path, "rb") as f:
                sources.append((path, f.read()))
        except OSError as e:
            raise NotFound("%s: %s" % (printable(path), (e.strerror or str(e)).lower())) from None
    cases = policytest.parse_cases(sources)
    now = datetime.now(timezone.utc)
    outcomes = [policytest.run(case, parsed, now) for case in cases]
    failed = [one for one in outcomes if one.differences]
    if args.json:
        console.json(
            {
                "ok": not failed, "cases": len(outcomes), "failed": len(failed),
                "policy": parsed.digest, "outcomes": [one.to_json() for one in outcomes],
            }
        )  # fmt: skip
    else:
        for one in failed:
            for line in _difference(one):
                console.print(line)
        console.print("%d of %d cases as expected" % (len(outcomes) - len(failed), len(outcomes)))
    if failed:
        raise ExpectationsFailed(
            "the policy does not do what is expected in %d of %d cases"
            % (len(failed), len(outcomes)),
            "either the policy is wrong, or what is expected of it",
        )
    return 0


def _difference(outcome: policytest.Outcome) -> Iterator[str]:
    case = outcome.case
    yield "%s:%d: %s" % (printable(case.file), case.line, printable(case.name))
    for one in outcome.differences:
        yield "  - %-11s %s" % (one.key, _shown(one.expected))
        yield "  + %-11s %s" % (one.key, _shown(one.actual))
    for why in outcome.why:
        yield "    %s" % printable(why)


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(printable(str(one)) for one in value) or "(none)"
    return printable(str(value)) if value else "(none)"
