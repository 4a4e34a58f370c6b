"""The commands below `recuse notify`: do notices to admins arrive?"""

from __future__ import annotations

from typing import Any

from recuse import amounts, notifyconf
from recuse.cast import printable
from recuse.console import Add, Call, Parser, as_json, table, word
from recuse.control import ask
from recuse.errors import ConfigError, DoctorFound

TEST_SECONDS = 310.0  # no channel takes longer than its own timeout, which has a limit


def add_commands(add: Add, commands: Any) -> None:
    """Add `notify` and what is below it."""
    group = commands.add_parser("notify", help="check the channels on which admins are told")
    inner = group.add_subparsers(dest="subcommand", metavar="COMMAND", parser_class=Parser)
    group.set_defaults(run=None, group=group)
    as_json(add("check", check, "find every mistake in notify.toml", inner))
    as_json(add("status", status, "say how the channels are, and what waits", inner))
    one = add("test", test, "send a notice that says nothing, and say whether it arrived", inner)
    one.add_argument("channel", metavar="CHANNEL")


def _ask(call: Call, verb: str, **more: Any) -> dict[str, Any]:
    path = str(call.paths.notify_socket)
    return ask({"verb": verb, **more}, path, TEST_SECONDS, "recuse-notify")


def check(call: Call) -> int:
    try:
        found = notifyconf.load(call.paths.notify_config)
    except ConfigError as e:
        if call.args.json:
            faults = [{"path": f.path, "line": f.line, "message": f.message} for f in e.faults]
            call.console.json({"ok": False, "faults": faults})
        raise
    names = sorted(found.channels)
    if call.args.json:
        call.console.json({"ok": True, "channels": names, "routes": len(found.routes)})
    else:
        call.console.print("%s is valid: %s" % (call.paths.notify_config, _counted(found)))
    return 0


def _counted(found: notifyconf.NotifyConfig) -> str:
    return "%d channels, %d routes" % (len(found.channels), len(found.routes))


def status(call: Call) -> int:
    found = _ask(call, "status")
    channels = found["channels"]
    if call.args.json:
        call.console.json({"channels": channels, "fault": found["fault"]})
    else:
        rows = [["CHANNEL", "TYPE", "STATE", "WAITING", "OLDEST", "DELIVERED", "GIVEN UP", "FAULT"]]
        for one in channels:
            oldest = one["oldest_seconds"]
            rows.append(
                [
                    word(one["channel"]),
                    word(one["type"]),
                    word(one["state"]),
                    word(one["waiting"]),
                    "-" if oldest is None else amounts.span(oldest),
                    word(one["delivered"]),
                    word(one["given_up"]),
                    word(one["fault"]),
                ]
            )
        for line in table(rows):
            call.console.print(line)
    if found["fault"]:
        call.console.warn("what notify.toml says now is not in force: %s" % found["fault"])
    if any(one["state"] in ("dead", "gone") for one in channels):
        raise DoctorFound("a channel delivers nothing", "see: journalctl -t recuse-notify")
    return 0


def test(call: Call) -> int:
    name = call.args.channel
    _ask(call, "test", channel=name)
    call.console.print("channel %s has taken a test notice" % printable(name))
    return 0
