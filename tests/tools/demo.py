#!/usr/bin/python3
"""The demonstration behind `make demo`: three logins into a throw-away host.

Everything shown is asserted, so it fails where the product does.
"""

from __future__ import annotations

import json
import re
import sys
import time
from typing import Any, Dict, List

from host import CLIENT, Host, HostError, Terminal

RULES = """
[[rule]]
name = "works-council"
effect = "exempt"
users = ["dave"]
reason = "consultation of employees is confidential"
owner = "works.council@example.org"
expires = 2099-12-31

[[rule]]
name = "left-the-company"
effect = "deny"
users = ["erin"]
message = "erin's account is closed, please see the service desk"
"""
COLOUR = sys.stdout.isatty()


def paint(code: str, text: str) -> str:
    return f"\033[{code}m{text}\033[0m" if COLOUR else text


def say(text: str) -> None:
    print(paint("1;36", f"\n● {text}"), flush=True)


def show_command(host_name: str, command: str) -> None:
    print(paint("33", f"{host_name} ") + paint("1", command), flush=True)


def show(text: str) -> None:
    for line in text.rstrip("\n").splitlines():
        print("    " + line, flush=True)


def plain(output: bytes) -> str:
    """Return what a terminal was sent, without the sequences that would move ours."""
    text = output.decode(errors="replace").replace("\r", "")
    return re.sub(r"\x1b(\([0-9A-Z]|\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|.)", "", text)


def need(truth: object, claim: str) -> None:
    if not truth:
        raise HostError(f"demo: not so: {claim}")


def as_root(host: Host, *command: str) -> str:
    show_command("root@host#", " ".join(command))
    out = host.run(*command, check=True).stdout
    show(out)
    return out


def rows(host: Host) -> List[Dict[str, Any]]:
    found = json.loads(host.run("recuse", "sessions", "--json", check=True).stdout)
    sessions: List[Dict[str, Any]] = found["sessions"]
    return sorted(sessions, key=lambda row: int(row["seq"]))


def log_in(host: Host, user: str) -> Terminal:
    show_command("laptop$", f"ssh -tt {user}@host")
    return host.login(user, rows=24, columns=80)


def type_in(terminal: Terminal, command: str) -> None:
    """Type a command and wait for the next prompt."""
    terminal.line(command)
    terminal.expect(r"\r\n(?s:.*)\$ (\x1b\[K)?$")


def end(host: Host, terminal: Terminal, cursor: str) -> None:
    terminal.line("exit 0")
    terminal.wait()
    show(plain(terminal.output))
    host.wait_journal("RECUSE_OUTCOME=recorded", "RECUSE_OUTCOME=exempt", after=cursor)


def main() -> int:
    began = time.monotonic()
    say("A Debian 12 host is booted, with the packages recuse and recuse-collector installed")
    with Host() as host:
        took = time.monotonic() - began
        show(f"up after {took:.1f} s, on an overlay that is thrown away in the end")
        host.write("/etc/recuse/policy.d/10-demo.toml", RULES)
        for user in ("alice", "dave", "erin"):
            host.write(f"/home/{user}/.hushlogin", "")
        need(b"sshd" in host.ssh("alice", "ps -o comm= -p $PPID").stdout, "sshd starts the shell")
        show("installing changed no login; two rules are written, then:")
        as_root(host, "recuse", "policy", "check")
        as_root(host, "systemctl", "reload-or-restart", "recuse-agent")
        as_root(host, "recuse", "enable")

        say("alice logs in. No rule names her: she is recorded, and told so")
        cursor = host.cursor()
        with log_in(host, "alice") as terminal:
            terminal.expect(r"\$ $")
            type_in(terminal, "echo 'the quick brown fox'")
            type_in(terminal, "printf '\\033[1;32mcolours\\033[0m and räksmörgås\\n'")
            end(host, terminal, cursor)
        need(b"record" in terminal.output.lower(), "alice is told that she is recorded")

        say("dave logs in. A rule with reason, owner and expiry exempts him: nothing is kept")
        cursor = host.cursor()
        with log_in(host, "dave") as terminal:
            terminal.expect(r"\$ $")
            type_in(terminal, "echo 'between the council and the employee'")
            end(host, terminal, cursor)
        held = host.run("grep -rl 'council and the employee' /var/lib /var/spool /var/log")
        need(held.stdout == "", "no byte of dave's session is on the disk")

        say("erin logs in. A rule refuses her, and she reads why")
        show_command("laptop$", "ssh -tt erin@host")
        refused = host.ssh("erin", tty=True)
        show(plain(refused.stdout + refused.stderr))
        need(refused.returncode != 0, "erin is refused")
        need(b"service desk" in refused.stdout + refused.stderr, "erin reads why")

        say("What the host says of it")
        as_root(host, "recuse", "sessions")
        found = {row["user"]: row for row in rows(host)}
        recorded, exempt = found["alice"], found["dave"]
        need(recorded["outcome"] == "recorded", "alice's session is recorded")
        need(exempt["outcome"] == "exempt", "dave's session is exempt")
        need(CLIENT in json.dumps(recorded["source"]), "the source is the kernel's")

        say("The stub of the exempt session: who, when, from where, by which rule, and no content")
        stub = as_root(host, "recuse", "show", exempt["session"])
        need("works-council" in stub, "the stub names the rule")
        need("works.council@example.org" in stub, "the stub names the owner")

        say("The journal answers: who was not recorded, and why?")
        query = as_root(host, "journalctl", "--no-pager", "-o", "cat", "RECUSE_VERDICT=exempt")
        need("works-council" in query, "the journal names the rule")

        say("Is the ledger whole, and every recording as it was signed?")
        as_root(host, "recuse", "verify")

        say("And the recording of alice, played again")
        show_command("root@host#", f"recuse play --speed 4 {recorded['session']}")
        with host.terminal("recuse", "play", "--speed", "4", recorded["session"]) as terminal:
            need(terminal.wait(30) == 0, "the recording plays to its end")
        show(plain(terminal.output))
        need("the quick brown fox" in plain(terminal.output), "what alice saw is seen again")
        need("räksmörgås" in plain(terminal.output), "what alice saw is seen again, all of it")

    print(paint("1;32", f"\n✓ all of it held, in {time.monotonic() - began:.0f} s"))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except HostError as error:
        print(paint("1;31", str(error)), file=sys.stderr)
        sys.exit(1)
