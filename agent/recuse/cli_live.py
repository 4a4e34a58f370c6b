"""The commands that work on the session they are given in: `recuse pause` and `recuse resume`."""

from __future__ import annotations

from typing import Any

from recuse.cast import printable
from recuse.console import Add, Call, UsageError, as_json
from recuse.tomlfile import parse_duration


def add_commands(add: Add, commands: Any) -> None:
    """Add `pause` and `resume`."""
    one = add("pause", pause, "suspend the recording of this session, if that is allowed")
    one.add_argument("--reason", metavar="CODE", help="code that says why")
    one.add_argument("--for", metavar="TIME", dest="length", help="such as 10m; default: longest")
    one.add_argument("--words", metavar="TEXT", default="", help="more on why")
    one.add_argument("--ticket", metavar="NAME", help="that the reason needs")
    one.add_argument("--status", action="store_true", help="only say whether it is paused")
    as_json(one)
    one = add("resume", resume, "end the pause of this session")
    as_json(one)


def pause(call: Call) -> int:
    """Suspend the recording, or say whether it is."""
    args = call.args
    if args.status:
        found = call.control("pause-status")
        if args.json:
            call.console.json(_shown(found))
        elif found["paused"]:
            reason = printable(found["reason"])
            call.console.print(f"{found['session']} is paused ({reason}) until {found['until']}")
        elif found["longest"] is None:
            call.console.print(f"{found['session']} is recorded, and may not be paused")
        else:
            call.console.print(
                f"{found['session']} is recorded, and may be paused for {found['longest']} s"
            )
        return 0
    if args.reason is None:
        raise UsageError("no reason: recuse pause --reason CODE")
    try:
        seconds = None if args.length is None else parse_duration(args.length)
    except ValueError as e:
        raise UsageError(str(e)) from None
    found = call.control("pause", reason=args.reason, words=args.words, seconds=seconds,
                         ticket=args.ticket)  # fmt: skip
    if args.json:
        call.console.json(_shown(found))
    return 0


def resume(call: Call) -> int:
    """Record again."""
    found = call.control("resume")
    if call.args.json:
        call.console.json(_shown(found))
    return 0


def _shown(found: Any) -> Any:
    return {name: value for name, value in found.items() if name != "ok"}
