"""The commands about exemptions that are asked for, from request to review."""

from __future__ import annotations

import contextlib
import getpass
import json
import operator
import os
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Iterator, List, Mapping, Optional, Sequence

from recuse import amounts, audit, mail
from recuse.approval import LEVELS, SCOPES, say_seconds
from recuse.cast import printable
from recuse.cli_mail import Collector, choose, statement_of
from recuse.console import (
    Add,
    Call,
    Parser,
    UsageError,
    archive,
    as_json,
    local,
    moment,
    seconds,
    table,
    word,
)
from recuse.errors import CryptoError, GrantError, LedgerError, NotFound
from recuse.grant import namespace_in
from recuse.grantrecords import fold_grants, matters
from recuse.records import Entry, format_time, parse

MAX_FILE = 256 * 1024
PASSWORD_SECONDS = 30.0  # PAM may take its time, above all with a wrong one
SIGN_SECONDS = 120.0  # a security key waits for its owner
KEYS = ("id_ed25519_sk", "id_ecdsa_sk", "id_ed25519", "id_ecdsa", "id_rsa")


def add_commands(add: Add, commands: Any) -> None:
    """Add what concerns requests and grants."""
    one = add("request", request, "ask for an exemption from recording")
    one.add_argument("--reason", metavar="CODE", required=True)
    one.add_argument("--why", metavar="TEXT", required=True, help="in words")
    one.add_argument("--ticket", metavar="NAME")
    one.add_argument("--for", metavar="TIME", type=seconds, dest="seconds", required=True)
    one.add_argument("--begin", metavar="TIME", type=moment, help="default: now")
    one.add_argument("--uses", metavar="N", type=int, default=1, help="sessions; default: 1")
    one.add_argument("--level", choices=LEVELS, default="metadata", help="what is kept")
    one.add_argument("--scope", choices=SCOPES, default="session", help="what a use is")
    one.add_argument("--max", metavar="TIME", type=seconds, help="of one session, or one pause")
    one.add_argument("--supervised", action="store_true", help="so that recording can begin in it")
    one.add_argument("--host", metavar="NAME", help="another one of the same collector")
    one.add_argument("--from", metavar="ADDRESS", dest="source", help="or a network")
    one.add_argument("--user", metavar="NAME", help="ask for somebody else")
    as_json(one)

    one = add("requests", requests, "list requests that wait for approval")
    one.add_argument("--host", metavar="NAME", help="at a collector: only of this one")
    _at_collector(one)
    as_json(one)
    one = add("grants", grants, "list grants")
    one.add_argument("--all", action="store_true", help="also what is used, expired or rejected")
    one.add_argument("--debts", action="store_true", help="reviews that are owed instead")
    archive(one)
    _at_collector(one)
    as_json(one)

    one = add("approve", approve, "sign a request, so that it is granted")
    _signing(one)
    _at_collector(one)
    _password(one)
    one = add("review", review, "sign that you have looked at broken glass")
    _signing(one)
    _at_collector(one)
    _password(one)
    one.add_argument("--words", metavar="TEXT", default="", help="what you found")

    for name, run, words in (
        ("reject", reject, "turn a request down, or withdraw it"),
        ("revoke", revoke, "take a grant back; what it exempts is no longer exempt"),
    ):
        one = add(name, run, words)
        one.add_argument("id", metavar="ID", help="request or grant, or the beginning of its id")
        one.add_argument("--why", metavar="TEXT", default="")
        _keys(one)
        _at_collector(one)
        as_json(one)

    one = add("break-glass", break_glass, "be exempt at once, and owe a review")
    one.add_argument("--why", metavar="TEXT", required=True)
    one.add_argument("--ticket", metavar="NAME")
    as_json(one)

    group = commands.add_parser("grant", help="carry grants by file")
    inner = group.add_subparsers(dest="subcommand", metavar="COMMAND", parser_class=Parser)
    group.set_defaults(run=None, group=group)
    one = add("export", export_grant, "write a request and its signatures to a file", inner)
    one.add_argument("id", metavar="ID")
    one.add_argument("file", metavar="FILE", nargs="?", help="default: stdout")
    one.add_argument(
        "--request", action="store_true", help="only the bytes of the request, to be signed by hand"
    )
    one = add("import", import_grant, "take a request with its signatures from a file", inner)
    one.add_argument("file", metavar="FILE")
    as_json(one)


def _signing(one: Parser) -> None:
    one.add_argument("id", metavar="ID", help="or the beginning of it")
    one.add_argument("--signature", metavar="FILE", help="made by hand with ssh-keygen -Y sign")
    _keys(one)
    as_json(one)


def _password(one: Parser) -> None:
    one.add_argument("--password", action="store_true", help="instead of a signature, if allowed")


def _keys(one: Parser) -> None:
    one.add_argument(
        "--key", metavar="FILE", help="private key, or public one of ssh-agent; default: yours"
    )
    one.add_argument("-y", "--yes", action="store_true", help="do not ask before signing")


def _at_collector(one: Parser) -> None:
    one.add_argument("--collector", metavar="URL", help="there, not on this host")
    one.add_argument("--ca", metavar="FILE", help="its certificate, or that of its authority")
    one.add_argument(
        "--mailbox-key", metavar="FILE", help="key that lets in there; default: that of --key"
    )


def _collector(call: Call) -> Collector:
    named = call.args.mailbox_key or getattr(call.args, "key", None)

    def sign(text: bytes, namespace: str) -> str:
        return _sign(text, namespace, _key(named), "-q")

    return Collector(call.args.collector, call.args.ca, sign)


# Asking


def request(call: Call) -> int:
    args = call.args
    told: dict[str, Any] = {
        "reason": args.reason, "why": args.why, "ticket": args.ticket,
        "seconds": round(args.seconds), "uses": args.uses, "level": args.level,
        "supervised": args.supervised, "host": args.host, "source": args.source,
        "user": args.user, "scope": args.scope,
    }  # fmt: skip
    if args.max is not None:
        told["max_seconds"] = round(args.max)
    if args.begin is not None:
        told["not_before"] = format_time(round(args.begin.timestamp()) * 10**9)
    present = {key: value for key, value in told.items() if value is not None}
    return _tell(call, call.control("request", **present)["grant"])


def break_glass(call: Call) -> int:
    told = {"why": call.args.why}
    if call.args.ticket is not None:
        told["ticket"] = call.args.ticket
    answer = call.control("break-glass", **told)
    if call.args.json:
        call.console.json({"grant": answer["grant"], "debt": answer["debt"]})
        return 0
    _tell(call, answer["grant"])
    due = local(answer["debt"]["due"])
    call.console.print("a second person has to review it until %s, or you get no more" % due)
    call.console.hint("tell them: recuse review %s" % word(answer["grant"]["grant"]))
    return 0


def _tell(call: Call, grant: Mapping[str, Any]) -> int:
    """Say how a request stands, and what is next."""
    if call.args.json:
        call.console.json(grant)
        return 0
    call.console.print("%s: %s" % (word(grant["grant"]), word(grant["state"])))
    if grant["state"] == "pending":
        groups = ", ".join(map(word, grant.get("groups") or ()))
        missing = amounts.number(int(grant["missing"]), "approval")
        call.console.print("%s missing, from: %s" % (missing, groups))
        call.console.hint("tell approvers: recuse approve %s" % word(grant["grant"]))
    elif grant["state"] == "granted":
        call.console.print(
            "%s of %s on %s, until %s"
            % (
                amounts.number(int(grant["left"]), word(grant["scope"])), word(grant["user"]),
                word(grant["host"]), local(grant["expires"]),
            )  # fmt: skip
        )
    return 0


# Listing


def _list(call: Call, **more: Any) -> dict[str, Any]:
    if getattr(call.args, "dir", None) is not None:
        return _list_archived(call, **more)
    return call.control("grants", **more)


def _list_archived(call: Call, grant: str = "") -> dict[str, Any]:
    """Add up what the ledgers of an archive say, each host's by itself."""
    now = datetime.now(timezone.utc)
    rows: List[dict[str, Any]] = []
    debts: List[dict[str, Any]] = []
    now_ns = round(now.timestamp() * 1e9)
    for prefix, sources in audit.group_by_host(call.catalog().sources).items():
        state, namespace = fold_grants(_steps(sources)), namespace_in(prefix)
        found = (row for row in state.rows.values() if row.id.startswith(grant))
        rows += [row.in_full(now, namespace) for row in found]
        debts += [debt.to_json(now_ns, namespace) for debt in state.debts.values()]
    return {"grants": rows, "debts": debts}


def _steps(sources: Sequence[audit.Source]) -> Iterator[Entry]:
    """Give the entries that matter; what is wrong with others, recuse verify says."""
    for source in sources:
        for _, raw, _ in source.entries():
            if raw is not None and matters(raw):
                with contextlib.suppress(LedgerError):
                    yield parse(raw)


def requests(call: Call) -> int:
    if call.args.collector is not None:
        rows = [
            one for one in _collector(call).requests()
            if call.args.host in (None, one["host"], one["collected_from"])
        ]  # fmt: skip
        return _show_list(call, rows, "no requests wait, and all grants have expired", hosts=True)
    if call.args.host is not None:
        raise UsageError("--host chooses among the hosts of a collector", "add --collector URL")
    found = [one for one in _list(call)["grants"] if one["state"] == "pending"]
    return _show_list(call, found, "no requests wait")


def grants(call: Call) -> int:
    if call.args.collector is not None:
        if not call.args.debts:
            raise UsageError("--collector goes with --debts", "recuse requests --collector URL")
        return _show_debts(call, list(_collector(call).debts()))
    told = _list(call)
    if call.args.debts:
        return _show_debts(call, told["debts"])
    wanted = ("granted",)
    found = [one for one in told["grants"] if call.args.all or one["state"] in wanted]
    return _show_list(call, found, "no grants are in force")


def _show_list(call: Call, found: List[Any], nothing: str, hosts: bool = False) -> int:
    if call.args.json:
        call.console.json(found)
        return 0
    if not found:
        call.console.print(nothing)
        return 0
    rows = [["ID", "STATE", "USER", "BY", "REASON", "TICKET", "LEFT", "UNTIL", "APPROVED"]]
    for one in found:
        approved = "%d of %d" % (len(one["approvals"]), one["approvers"])
        rows.append([
            word(one["grant"]), word(one["state"]), word(one["user"]), word(one["requester"]),
            word(one["reason"]), word(one["ticket"]), "%d/%d" % (one["left"], one["uses"]),
            local(one["expires"]), approved,
        ])  # fmt: skip
    if hosts:
        rows = [[row[0], host, *row[1:]] for row, host in zip(
            rows, ["HOST", *(word(one["host"]) for one in found)]
        )]  # fmt: skip
    for line in table(rows):
        call.console.print(line)
    return 0


def _show_debts(call: Call, found: List[Any]) -> int:
    if call.args.json:
        call.console.json(found)
        return 0
    if not found:
        call.console.print("nobody owes a review")
        return 0
    rows = [["ID", "USER", "DUE", "REVIEWED BY", "WHY"]]
    for one in found:
        due = local(one["due"]) + (" overdue" if one["overdue"] else "")
        who = word(one["reviewed_by"])
        rows.append([word(one["debt"]), word(one["user"]), due, who, word(one["why"])])
    for line in table(rows):
        call.console.print(line)
    return 0


def _one(call: Call, name: str) -> dict[str, Any]:
    if getattr(call.args, "collector", None) is not None:
        return choose(list(_collector(call).requests()), name)
    found = _list(call, grant=name)["grants"] if len(name) >= 4 else []
    if len(found) != 1:
        raise NotFound("no request %s, or not for you to see" % printable(name), "recuse requests")
    one: dict[str, Any] = found[0]
    return one


def show_grant(call: Call) -> int:
    """Show all that is known of a request and what became of it."""
    one = _one(call, call.args.id)
    if call.args.json:
        call.console.json(one)
        return 0
    call.console.print("request %s: %s" % (word(one["grant"]), word(one["state"])))
    for line in describe(one["request"]):
        call.console.print("  " + line)
    for approval in one["approvals"]:
        how = {"pam": "by password", "signature": "by key %s" % word(approval["key"])}
        call.console.print(
            "  approved by %s, %s" % (word(approval["principal"]), how.get(approval["method"], "-"))
        )
    for name, text in (("rejected_by", "rejected by %s"), ("revoked_by", "revoked by %s")):
        if one[name]:
            call.console.print("  " + text % word(one[name]))
    if one["words"]:
        call.console.print("  saying: %s" % word(one["words"]))
    for session in one["sessions"]:
        call.console.print("  used by session %s" % word(session))
    return 0


def describe(raw: str) -> Iterator[str]:
    """Say in plain words what the bytes of a request say, and nothing that they do not."""
    try:
        told = json.loads(raw)
        kind = told["recuse"]
        if kind == "review/1":
            yield "I have looked at what %s did on %s" % (word(told["user"]), word(told["host"]))
            yield "behind broken glass: %s" % word(told["why"])
            yield "debt       %s" % word(told["debt"])
            return
        if kind in ("rejection/1", "revocation/1"):
            what = "turn down request" if kind == "rejection/1" else "take back grant"
            yield "I %s %s on %s" % (what, word(told["grant"]), word(told["host"]))
            yield "saying     %s" % word(told["words"])
            return
        if kind != "request/1":
            raise ValueError
        who = word(told["user"]) + " (uid %d)" % told["uid"]
        scope = told.get("scope", "session")
        may = {"session": "%s of %s on %s may be exempt",
               "pause": "%s in recorded sessions of %s on %s"}[scope]  # fmt: skip
        uses = amounts.number(operator.index(told["uses"]), scope)
        yield may % (uses, who, word(told["host"]))
        if told.get("source"):
            yield "from       %s" % word(told["source"])
        yield "between    %s and %s" % (local(told["not_before"]), local(told["expires"]))
        if told.get("max_seconds"):
            yield "each       at most %s" % say_seconds(told["max_seconds"])
        kept = {
            "metadata": "who, when and from where; not what is done",
            "commands": "who, when, from where, and the command line",
            "output": "everything but what is typed",
        }
        if scope == "session":
            yield "kept       %s (%s)" % (word(told["level"]), kept[told["level"]])
        else:
            yield "kept       how much passes in a pause; not what is done"
        if told["supervised"]:
            yield "supervised, so that recording can begin in it"
        yield "reason     %s, ticket %s" % (word(told["reason"]), word(told.get("ticket")))
        yield "why        %s" % word(told["why"])
        yield "asked by   %s" % word(told["requester"])
        yield "id         %s" % word(told["id"])
    except (ValueError, KeyError, TypeError):
        raise GrantError("what would be signed is no request of recuse") from None


# Approving


def approve(call: Call) -> int:
    _no_password_there(call)
    one = _one(call, call.args.id)
    _show_what_is_signed(call, one["request"])
    told: dict[str, Any] = {"grant": one["grant"]}
    if call.args.password:
        told["password"] = _ask_password(call, "approve it with your password?")
        return _tell(call, call.control("approve", PASSWORD_SECONDS, **told)["grant"])
    told["signature"] = _signature(call, one["request"], one["namespace"], "sign that?")
    if call.args.collector is not None:
        return _send(call, one, mail.Item("approval", one["grant"], signature=told["signature"]))
    return _tell(call, call.control("approve", **told)["grant"])


def _no_password_there(call: Call) -> None:
    if call.args.collector is not None and call.args.password:
        raise UsageError("a password counts on the host alone", "sign: leave out --password")


def _ask_password(call: Call, question: str) -> str:
    _ask(call, question)
    return getpass.getpass("password of %s: " % getpass.getuser())


def _send(call: Call, one: Mapping[str, Any], item: mail.Item) -> int:
    """Send something to the host of a request, and say what came of it."""
    told = _collector(call).send(one["collected_from"], item)
    if call.args.json:
        call.console.json({"grant": item.grant or one["grant"], **told})
    elif told["taken"]:
        call.console.print("%s says: %s" % (word(told["host"]), word(told["words"])))
    else:
        call.console.print("%s has not fetched it yet" % word(told["host"]))
        call.console.hint("it will, and it need not be sent again: recuse requests --collector URL")
    return 0


def _end_there(call: Call, kind: str) -> int:
    """End a request by a signed statement, through a collector."""
    one = _one(call, call.args.id)
    statement = statement_of(kind, one, call.args.why)
    _show_what_is_signed(call, statement)
    signature = _signature(call, statement, one["namespace"], "sign that?")
    return _send(call, one, mail.Item("end", statement=statement, signature=signature))


def review(call: Call) -> int:
    _no_password_there(call)
    if call.args.collector is not None:
        return _review_there(call)
    debt = call.control("review", grant=call.args.id)["debt"]
    _show_what_is_signed(call, debt["statement"])
    told = {"grant": debt["debt"], "words": call.args.words}
    if call.args.password:
        told["password"] = _ask_password(call, "review it with your password?")
        told = call.control("review", PASSWORD_SECONDS, **told)["debt"]
    else:
        signature = _signature(call, debt["statement"], debt["namespace"], "sign that?")
        told = call.control("review", signature=signature, **told)["debt"]
    if call.args.json:
        call.console.json(told)
    else:
        call.console.print("reviewed by %s" % word(told["reviewed_by"]))
    return 0


def _review_there(call: Call) -> int:
    """Send a review through a collector; what the reviewer found is not signed, and not sent."""
    if call.args.words:
        raise UsageError("--words are taken on the host alone", "leave them out")
    debt = choose(list(_collector(call).debts()), call.args.id, "debt")
    _show_what_is_signed(call, debt["statement"])
    signature = _signature(call, debt["statement"], debt["namespace"], "sign that?")
    return _send(call, debt, mail.Item("review", debt["debt"], signature=signature))


def _show_what_is_signed(call: Call, raw: str) -> None:
    for line in describe(raw):
        if not call.args.json:
            call.console.print(line)


def _ask(call: Call, question: str) -> None:
    """Have somebody at the terminal agree. Raises: UsageError, GrantError"""
    if call.args.yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask on", "if you are sure: --yes")
    call.console.out.flush()
    call.console.err.write("recuse: %s yes or no: " % question)
    call.console.err.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise GrantError("nothing was signed")


def _signature(call: Call, raw: str, namespace: str, question: str) -> str:
    """Give the signature from a file, or have ssh-keygen make it."""
    if getattr(call.args, "signature", None) is not None:
        return _read(call.args.signature).decode("ascii", "replace")
    key = _key(call.args.key)
    _ask(call, question)
    return _sign(raw.encode(), namespace, key)


def _sign(raw: bytes, namespace: str, key: str, *more: str) -> str:
    """Have ssh-keygen sign. Raises: CryptoError"""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "request")
        file.write_bytes(raw)
        words = ["ssh-keygen", "-Y", "sign", *more, "-f", key, "-n", namespace, str(file)]
        try:
            ran = subprocess.run(words, stdout=subprocess.DEVNULL, timeout=SIGN_SECONDS)
            if ran.returncode == 0:
                return Path(directory, "request.sig").read_text("ascii")
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CryptoError("ssh-keygen cannot sign: %s" % error) from None
    raise CryptoError("ssh-keygen did not sign with %s" % printable(key), "see what it says above")


def _key(named: Optional[str]) -> str:
    if named is not None:
        return named
    home = Path.home() / ".ssh"
    for name in KEYS:
        if (home / name).exists():
            return str(home / name)
    raise NotFound("no key of yours in %s" % home, "name one: --key FILE")


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            found = file.read(MAX_FILE + 1)
    except OSError as error:
        told = (error.strerror or str(error)).lower()
        raise NotFound("%s: %s" % (printable(path), told)) from None
    if len(found) > MAX_FILE:
        raise GrantError("%s: larger than %d bytes" % (printable(path), MAX_FILE))
    return found


# Ending


def reject(call: Call) -> int:
    if call.args.collector is not None:
        return _end_there(call, "rejection")
    told = call.control("reject", grant=call.args.id, words=call.args.why)
    return _tell(call, told["grant"])


def revoke(call: Call) -> int:
    if call.args.collector is not None:
        return _end_there(call, "revocation")
    told = call.control("revoke", grant=call.args.id, words=call.args.why)
    if call.args.json:
        call.console.json({**told["grant"], "ended": told["ended"]})
        return 0
    for session in told["ended"]:
        call.console.print("session %s is no longer exempt" % word(session))
    return _tell(call, told["grant"])


# By file


def export_grant(call: Call) -> int:
    one = _one(call, call.args.id)
    if call.args.request:
        data = one["request"].encode()
    else:
        told = {
            "recuse": "grant/1", "request": one["request"], "namespace": one["namespace"],
            "signatures": one["signatures"],
        }  # fmt: skip
        data = json.dumps(told, indent=1, ensure_ascii=False).encode() + b"\n"
    if call.args.file is None:
        call.console.out.flush()
        call.console.binary().write(data)
        return 0
    try:
        fd = os.open(call.args.file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        with open(fd, "wb") as file:
            file.write(data)
    except OSError as error:
        told_ = (error.strerror or str(error)).lower()
        raise NotFound("%s: %s" % (printable(call.args.file), told_)) from None
    return 0


def import_grant(call: Call) -> int:
    try:
        told = json.loads(_read(call.args.file))
        if told["recuse"] != "grant/1":
            raise ValueError
        asked, signatures = told["request"], told["signatures"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise GrantError(
            "%s is no grant" % printable(call.args.file), "write one: recuse grant export"
        ) from None
    answer = call.control("grant-import", request=asked, signatures=signatures)
    return _tell(call, answer["grant"])
