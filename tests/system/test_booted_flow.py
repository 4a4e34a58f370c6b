"""What is typed, and floods: passwords are never kept, and limits are what the page says."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import List, Tuple

from accounts import RULES, enable, export, find_bytes, verify, watching
from host import Host

CONFIG = "/etc/recuse/recuse.toml"
RULE = '[[rule]]\nname = "typed"\neffect = "record"\nusers = ["frank"]\nlevel = "full"\n'
KEPT = ("/var/spool/recuse", "/var/lib/recuse", "/var/lib/recuse-ship", "/var/lib/recuse-central")
MIB = 1 << 20


@contextmanager
def session_settings(host: Host, settings: str) -> Iterator[None]:
    before = host.read(CONFIG)
    host.write(CONFIG, f"[session]\n{settings}\n")
    host.run("systemctl", "reload", "recuse-agent.service", check=True)
    yield
    host.write(CONFIG, before)
    host.run("systemctl", "reload", "recuse-agent.service", check=True)


def events(host: Host, session: str) -> List[Tuple[str, str]]:
    lines = export(host, session, "cast").splitlines()[1:]
    return [(code, data) for _, code, data in map(json.loads, lines)]


def test_password_typed_for_sudo_is_never_kept(host: Host) -> None:
    enable(host, RULE + RULES)
    host.write("/etc/sudoers.d/flow", "frank ALL=(ALL) ALL\n", mode=0o440)
    with watching(host, logins=2) as seen, host.login("frank") as terminal:
        terminal.expect(r"\$ $")
        terminal.line("sudo echo as'-'root")
        terminal.expect("password for frank: ")
        terminal.line("not-my-word")
        terminal.expect("(?s)try again.*password for frank: ")
        terminal.line("pw-frank")
        terminal.expect(r"as-root\r\n\$ $")  # what is typed ahead, sudo throws away at its end
        terminal.line("exit 5")
        assert terminal.wait() == 5
    (shell,) = [row for row in seen.sessions if row["kind"] == "shell"]
    assert (shell["level"], shell["outcome"]) == ("full", "recorded")
    found = events(host, str(shell["session"]))
    typed = "".join(data for code, data in found if code == "i")
    assert typed == "sudo echo as'-'root\rexit 5\r"
    marks = [at for at, one in enumerate(found) if one == ("m", "recuse input hidden")]
    (mark,) = marks  # one for all that was not shown, so that its length is not told either
    assert "password for frank" in "".join(data for code, data in found[:mark] if code == "o")
    assert "as-root" in "".join(data for code, data in found[mark:] if code == "o")
    for word in ("pw-frank", "not-my-word"):
        assert find_bytes(host, word, *KEPT) == []
    assert find_bytes(host, "as'-'root", *KEPT)  # it would have been found
    verify(host)


def test_limit_that_slows_misses_nothing_and_is_interrupted_at_once(host: Host) -> None:
    with session_settings(host, 'rate = "1 MiB"\nburst = "1 MiB"\non_limit = "slow"'):
        with watching(host) as seen:
            began = time.monotonic()
            done = host.ssh("alice", f"seq -w 1000000 | head -c {4 * MIB}", tty=True)
            took = time.monotonic() - began
        assert took > 2.0  # three of the four MiB, at one a second
        assert seen.session["outcome"] == "recorded"
        kept = "".join(d for c, d in events(host, str(seen.session["session"])) if c == "o")
        assert done.stdout.decode().endswith(kept)  # before it is the notice
        assert kept.count("\n") == 4 * MIB // 8

        with watching(host) as seen, host.login("alice") as terminal:
            terminal.expect(r"\$ $")
            terminal.line("yes flood | head -c 100M; true")
            terminal.expect("(flood\r\n){9}")
            terminal.send("\x03")
            terminal.expect(r"(?s)\^C.*\$ $")
            assert b"answers" in terminal.run("echo answers")
            terminal.line("exit 6")
            assert terminal.wait() == 6
        assert seen.session["outcome"] == "recorded"
    verify(host)


def test_limit_that_makes_gaps_delays_nothing_and_accounts_for_all(host: Host) -> None:
    """With no other limits than a host has by default: each is held to its own action."""
    settings = 'rate = "8 KiB"\nburst = "64 KiB"\non_limit = "gap"\n'
    with session_settings(host, settings), watching(host) as seen:
        began = time.monotonic()
        done = host.ssh("alice", "seq -w 100000 | head -c 500000; echo; echo end", tty=True)
        assert time.monotonic() - began < 30.0  # slowed down, it would be 53
    shown = done.stdout[done.stdout.index(b"000001") :]
    session = str(seen.session["session"])
    assert seen.session["outcome"] == "partial" and shown.endswith(b"\r\nend\r\n")
    for code, data in events(host, session):  # what is kept and what is not make up all of it
        if code == "o":
            assert shown.startswith(data.encode())
            shown = shown[len(data) :]
        elif code == "g":
            said = dict(word.split("=") for word in data.split())
            missing, shown = shown[: int(said["bytes"])], shown[int(said["bytes"]) :]
            assert hashlib.sha256(missing).hexdigest() == said["sha256"]
            assert said["cause"] == "limit"
    assert shown == b""
    played = host.run("recuse", "play", session, check=True).stdout
    lines = [line for line in played.split("\n") if "[gap" in line]
    assert len(lines) == len(seen.session["gaps"]) > 0
    assert all(line.startswith("[gap: ") for line in lines)
    verify(host)


def test_limit_that_ends_ends_the_session_and_keeps_what_was_shown(host: Host) -> None:
    with session_settings(host, 'size = "1 MiB"\non_limit = "end"'):
        with watching(host) as seen, host.login("alice", "yes flood; echo not-reached") as terminal:
            assert terminal.wait() == 74
        shown = terminal.output.decode()
        kept = "".join(d for c, d in events(host, str(seen.session["session"])) if c == "o")
        (gap,) = seen.session["gaps"]  # what was read from the program and not shown
        assert (seen.session["outcome"], gap["cause"]) == ("partial", "limit")
        assert "not-reached" not in shown
        assert len(re.findall("flood", shown)) <= kept.count("flood")
        with watching(host) as seen:
            assert host.ssh("alice", "exit 3", tty=True).returncode == 3
        assert seen.session["outcome"] == "recorded"
    verify(host)
