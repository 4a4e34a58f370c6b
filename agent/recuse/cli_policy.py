"""The commands below `recuse policy`: is it right, and what does it decide?"""

from __future__ import annotations

import argparse
import dataclasses
import os
from datetime import datetime, timezone
from typing import Any, Iterator, Optional, Sequence, Sized, Tuple

from recuse import amounts, cli_whatif, config, policy
from recuse.approvaltoml import parse_approval
from recuse.asks import FAILURES, Answer
from recuse.cast import printable
from recuse.console import Add, Call, Parser, as_json, moment, policy_files, table, word
from recuse.errors import NotFound, PolicyError
from recuse.facts import PURPOSE
from recuse.policytoml import parse_policy
from recuse.reasons import Texts
from recuse.tomlfile import did_you_mean


def add_commands(add: Add, commands: Any) -> None:
    """Add `policy` and what is below it, and `tags`."""
    as_json(add("tags", tags, "say what your sessions are tagged with, and what you may claim"))
    group = commands.add_parser("policy", help="check and explain the policy")
    inner = group.add_subparsers(dest="subcommand", metavar="COMMAND", parser_class=Parser)
    group.set_defaults(run=None, group=group)
    one = add("check", check, "find every mistake in policy files", inner)
    one.add_argument("files", nargs="*", metavar="FILE", help="files or directories")
    as_json(one)
    one = add("explain", explain, "say what the policy decides, and why", inner)
    one.add_argument("--user", required=True)
    one.add_argument("--service", required=True)
    one.add_argument("--uid", type=int)
    one.add_argument("--group", action="append", metavar="NAME", help="instead of the user's own")
    one.add_argument("--source", metavar="ADDRESS", help="as the kernel sees it; default: local")
    one.add_argument("--claimed-source", metavar="NAME")
    one.add_argument("--ruser", metavar="NAME")
    one.add_argument("--tty", choices=("yes", "no"), help="default: yes without a command")
    one.add_argument("--command", metavar="TEXT", dest="user_command")
    one.add_argument("--login", action="store_true", help="decide as at login, before any session")
    one.add_argument("--host", metavar="NAME")
    one.add_argument("--host-tag", action="append", metavar="TAG")
    one.add_argument("--tag", action="append", default=[], metavar="TAG", help="assigned tag")
    one.add_argument("--claimed-tag", action="append", default=[], metavar="TAG")
    one.add_argument(
        "--answer", type=_answer, action="append", default=[], metavar="NAME=ANSWER",
        help="what an ask is answered: match, no-match, failed or timeout; default: not asked",
    )  # fmt: skip
    one.add_argument("--outer", choices=("record", "exempt"), help="verdict of the session around")
    one.add_argument("--at", type=moment, metavar="TIME", help="default: now")
    one.add_argument("--policy", action="append", default=[], metavar="FILE", dest="files")
    as_json(one)
    cli_whatif.add_commands(add, inner)


def _answer(text: str) -> Tuple[str, Answer]:
    name, _, said = text.rpartition("=")
    if name and said in FAILURES:
        return name, Answer(None, said)
    if name and said in ("match", "no-match"):
        return name, Answer(said == "match")
    known = ", ".join(("match", "no-match", *FAILURES))
    raise argparse.ArgumentTypeError("%r is not NAME= and one of %s" % (text, known))


def _is_approval(name: str) -> bool:
    return os.path.basename(os.path.dirname(os.path.abspath(name))) == "approval.d"


def tags(call: Call) -> int:
    """List the caller's live sessions with their tags, and what may be claimed."""
    known = call.control("tags")
    rows = [
        {key: row.get(key) for key in ("session", "tags", "claimed_tags")}
        for row in call.control("sessions", mine=True).get("sessions", [])
    ]
    purposes = known.get("purposes") or {}
    if call.args.json:
        claimable = known.get("claimable") or []
        call.console.json({"sessions": rows, "claimable": claimable, "purposes": purposes})
        return 0
    shown = [["SESSION", "TAGS", "CLAIMED"]]
    for row in rows:
        listed = [", ".join(map(word, row[key] or ())) or "-" for key in ("tags", "claimed_tags")]
        shown.append([word(row["session"]), *listed])
    for line in table(shown) if rows else ("no session of yours is live",):
        call.console.print(line)
    if not known.get("claimable"):
        call.console.print("no rule of this host asks for what users claim")
        return 0
    call.console.print("you may claim:")
    language = os.environ.get("LC_ALL") or os.environ.get("LC_MESSAGES") or os.environ.get("LANG")
    for tag in known["claimable"]:
        texts = purposes.get(tag[len(PURPOSE) :]) if tag.startswith(PURPOSE) else None
        text = f"  {printable(Texts(texts).choose(language or ''))}" if texts else ""
        call.console.print(f"  {word(tag)}{text}")
    call.console.hint("claim with: ssh -o SetEnv=LC_RECUSE_TAGS=%s …" % known["claimable"][0])
    return 0


def check(call: Call) -> int:
    """Check policy and approval policy: the files named, else those of this host."""
    try:
        files = policy_files(call)
        if not call.args.files:
            files += config.read_policy_dir(call.paths.approval_dir)
        ours = [one for one in files if _is_approval(one[0])]
        rules = [one for one in files if one not in ours]
        if ours and not rules:  # whose roles and reasons they name
            rules = config.read_policy_dir(call.paths.policy_dir)
        parsed = parse_policy(rules)
        approval = parse_approval(ours, parsed)
    except PolicyError as e:
        if call.args.json:
            faults = [{"path": f.path, "line": f.line, "message": f.message} for f in e.faults]
            call.console.json({"ok": False, "faults": faults})
        raise
    if call.args.json:
        call.console.json(
            {
                "ok": True,
                "files": [name for name, _ in files],
                "rules": len(parsed.rules),
                "digest": parsed.digest,
                "allowances": len(approval.allowances),
                "approval_digest": approval.digest,
            }
        )
    else:
        call.console.print(
            "policy is valid: %s, %s, digest %s"
            % (_files(parsed.files), amounts.number(len(parsed.rules), "rule"), parsed.digest)
        )
        if approval.files:
            call.console.print(
                "approval policy is valid: %s, %s, digest %s"
                % (
                    _files(approval.files),
                    amounts.number(len(approval.allowances), "allowance"),
                    approval.digest,
                )
            )
    return 0


def _files(names: Sized) -> str:
    return amounts.number(len(names), "file")


def _facts(call: Call) -> policy.Facts:
    import grp
    import pwd

    args = call.args
    uid, groups = args.uid, args.group
    try:
        known = pwd.getpwnam(args.user)
    except KeyError:
        if uid is None:
            raise NotFound(
                "no user %s here" % printable(args.user), "give --uid and --group"
            ) from None
    else:
        uid = known.pw_uid if uid is None else uid
        if groups is None:
            groups = []
            for gid in os.getgrouplist(args.user, known.pw_gid):
                try:
                    groups.append(grp.getgrgid(gid).gr_name)
                except KeyError:
                    continue
    host, tags = args.host, args.host_tag
    if host is None or tags is None:
        settings = config.load(call.paths.config)
        host = host or settings.host.name or os.uname().nodename
        tags = settings.host.tags if tags is None else tags
    tty: Optional[bool] = None
    command = None
    if not args.login:
        tty = args.tty == "yes" if args.tty else args.user_command is None
        command = args.user_command or ""
    return policy.Facts(
        user=args.user,
        uid=uid,
        groups=tuple(groups or ()),
        service=args.service,
        host=host,
        host_tags=frozenset(tags),
        source=args.source,
        claimed_source=args.claimed_source,
        ruser=args.ruser,
        tty=tty,
        command=command,
        login_shell=None if args.login else args.user_command is None,
        tags=frozenset(args.tag),
        claimed_tags=frozenset(args.claimed_tag),
        outer=args.outer,
    )


# What JSON says of a decision; the text, in sentences.
_EXPLAINED = (
    "verdict", "rule", "effect", "reason", "owner", "expires", "message", "level", "supervised",
    "confirm", "notice", "reason_code", "tags", "pause_seconds", "policy", "matched",
)  # fmt: skip


def explain(call: Call) -> int:
    parsed = parse_policy(policy_files(call))
    facts = _facts(call)
    now = call.args.at or datetime.now(timezone.utc)
    answers = dict(call.args.answer)
    unknown = sorted(answers.keys() - parsed.asks.keys())
    if unknown:
        hint = did_you_mean(unknown[0], parsed.asks)
        raise NotFound("the policy has no ask %s%s" % (printable(unknown[0]), hint))
    decision = policy.decide(facts, parsed, now, answers=answers)
    traces = policy.explain(facts, parsed, now, answers=answers)
    open_asks = [
        ask.name for ask in policy.questions(facts, parsed, now) if ask.name not in answers
    ]
    if call.args.json:
        told = {name: getattr(decision, name) for name in _EXPLAINED}
        call.console.json(
            {
                **told,
                "facts": policy.facts_to_json(facts),
                "asks": open_asks,
                "rules": [dataclasses.asdict(trace) for trace in traces],
            }
        )
        return 0
    for line in _explained(decision, open_asks, traces):
        call.console.print(line)
    return 0


def _explained(
    decision: policy.Decision, open_asks: Sequence[str], traces: Sequence[policy.RuleTrace]
) -> Iterator[str]:
    if decision.rule is None:
        yield "%s: no rule decides otherwise" % decision.verdict
    else:
        yield "%s: rule %s decides" % (decision.verdict, printable(decision.rule))
    pause = decision.pause_seconds
    for name, value in (
        ("keeps", decision.level),
        ("reason", decision.reason),
        ("owner", decision.owner),
        ("ends", decision.expires),
        ("message", decision.message),
        ("tags", ", ".join(decision.tags)),
        ("relay", "stays, so that recording can begin" if decision.supervised else None),
        ("confirm", "the user has to acknowledge the notice" if decision.confirm else None),
        ("notice", decision.notice),
        ("pause", pause and f"{pause} s at most"),
    ):
        if value:
            yield "  %-8s %s" % (name, printable(value))
    if open_asks:
        yield "  asks     %s, and it depends on the answer; try --answer" % ", ".join(open_asks)
    for trace in sorted(traces, key=lambda t: (not t.decided, not t.matched)):
        mark = "*" if trace.decided else "+" if trace.matched else "-"
        rule, where, why = map(printable, (trace.rule, trace.where, trace.why))
        yield f"{mark} {rule} ({trace.effect}, {where}): {why}"
