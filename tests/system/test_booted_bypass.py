"""What users may try in order to act unrecorded or unaccounted, one file each in bypass/.

A file begins with what it is:

    # tries:  one line
    # as:     the user
    # by:     tty (ssh -tt with it as the command), pipe (ssh -T), shell (typed into an
    #         interactive shell), outside (the user's process in no login), client (a script of
    #         the user's own machine, with ssh, scp and sftp to $HOST; `root` is what the kernel
    #         or an administrator does there meanwhile)
    # expect: recorded | stubbed | refused | detected: event KIND (of the journal),
    #         detected: text WORDS (in the recording), detected: login SERVICE (its own stub,
    #         partial as no session was in it)
    # closes: outcomes of all sessions, sorted, or none (default: recorded)
    # logins: how many logins end (default: 1, outside: 0)
    # exit:   any, if the script cannot end well

The case's own word is ACTED-<its name>: what it does and ought to be accounted for. Whatever is
expected, that word is in a recording if a client saw it, unless the case is `stubbed` or
`detected`; a line with WORKED says that something worked that must not.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from accounts import RULES, enable, event, rows, verify
from host import ADDRESS, Host

HERE = Path(__file__).parent / "bypass"
INSIDE = "/usr/local/lib/bypass"

#: Services whose logins are counted.
LOGINS = ("sshd", "su", "su-l", "sudo", "sudo-i")

#: dave is exempt and may become root; what he does as root is recorded where a shell is run.
SUDOERS = "dave ALL=(ALL) NOPASSWD: ALL\n"


@dataclass(frozen=True)
class Case:
    """One way to try, as its file describes it."""

    path: Path
    tries: str
    user: str
    by: str
    expect: str
    how: str
    closes: tuple[str, ...]
    logins: int
    may_fail: bool

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def word(self) -> str:
        return f"ACTED-{self.name}"

    @classmethod
    def read(cls, path: Path) -> Case:
        found = dict(re.findall(r"^# (\w+): +(.*)$", path.read_text(), re.MULTILINE))
        expect, _, how = found["expect"].partition(": ")
        assert expect in ("recorded", "stubbed", "refused", "detected"), path
        assert bool(how) == (expect == "detected"), path
        closes = found.get("closes", "recorded")
        return cls(
            path, found["tries"], found["as"], found["by"], expect, how,
            () if closes == "none" else tuple(closes.split()),
            int(found.get("logins", found["by"] != "outside")),
            found.get("exit") == "any",
        )  # fmt: skip


CASES = [
    Case.read(path)
    for path in sorted(HERE.iterdir())
    if path.is_file() and not path.name.startswith("lib.")
]


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host() as host:
        enable(host, RULES)
        host.write("/etc/sudoers.d/bypass", SUDOERS, mode=0o440)
        for path in HERE.iterdir():
            if path.is_file():
                host.write(f"{INSIDE}/{path.name}", path.read_text(), mode=0o755)
        yield host


@pytest.fixture(scope="module")
def clients(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of commands that reach the host: ssh, scp, sftp, and root on it."""
    place = tmp_path_factory.mktemp("bin")
    for name in ("ssh", "scp", "sftp"):
        write_script(place / name, host.client(shutil.which(name) or name))
    write_script(place / "root", host.enter())
    return place


def write_script(path: Path, words: list[str]) -> None:
    quoted = " ".join(f"'{word}'" for word in words)
    path.write_text(f'#!/bin/sh\nexec {quoted} "$@"\n')
    path.chmod(0o755)


def run(host: Host, clients: Path, case: Case) -> tuple[int, str]:
    """Run a case; return its exit status and all that anybody saw of it."""
    inside = f"{INSIDE}/{case.name}"
    if case.by == "pipe":
        result = host.ssh(case.user, inside, timeout_seconds=60)
        return result.returncode, (result.stdout + result.stderr).decode(errors="replace")
    if case.by in ("tty", "shell"):
        with host.login(case.user, *([inside] if case.by == "tty" else [])) as terminal:
            if case.by == "shell":
                terminal.expect(r"[$>%] $")
                terminal.line(f" exec {inside}")
            status = terminal.wait(20)
        return status, terminal.output.decode(errors="replace")
    if case.by == "outside":
        who = ("setpriv", f"--reuid={case.user}", f"--regid={case.user}", "--init-groups")
        told = host.run(*who, "env", f"HOME=/home/{case.user}", inside)
        return told.returncode, told.stdout + told.stderr
    assert case.by == "client", case.by
    environment = {**os.environ, "PATH": f"{clients}:{os.environ['PATH']}", "HOST": ADDRESS}
    here = subprocess.run(
        [str(case.path)], check=False, stdin=subprocess.DEVNULL, capture_output=True,
        timeout=30, env=environment, cwd=clients,
    )  # fmt: skip
    return here.returncode, (here.stdout + here.stderr).decode(errors="replace")


def is_recorded(host: Host, closed: list[dict[str, str]], words: str) -> bool:
    """Say whether one of these sessions has a recording in which that stands."""
    for one in reversed(closed):
        told = host.run("recuse", "export", "--format", "text", one["RECUSE_SESSION"])
        if told.returncode == 0 and words in told.stdout:
            return True
    return False


def wait_for_ends(
    host: Host, kind: str, count: int, cursor: str, known: set[str]
) -> list[dict[str, str]]:
    """Wait until so many logins or sessions have ended that no earlier case has seen the end of."""
    field = "RECUSE_SESSION" if kind == "closed" else "RECUSE_LOGIN"
    wanted = count
    while count:
        found = host.wait_journal(event(kind), count=wanted, after=cursor)
        # Of processes in no login, what is accounted for as one ends when it will.
        fresh = [
            one
            for one in found
            if one[field] not in known
            and (kind == "closed" or one["RECUSE_SERVICE"] in LOGINS)
        ]
        if len(fresh) == count:
            known.update(one[field] for one in fresh)
            return fresh
        wanted += count - len(fresh)
    return []


@pytest.fixture(scope="module")
def known() -> set[str]:
    """The logins and sessions of the cases so far."""
    return set()


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_way(host: Host, clients: Path, known: set[str], case: Case) -> None:
    cursor = host.cursor()
    status, said = run(host, clients, case)
    assert "WORKED" not in said, said
    assert status == 0 or case.may_fail, said
    wait_for_ends(host, "logout", case.logins, cursor, known)
    closed = wait_for_ends(host, "closed", len(case.closes), cursor, known)
    assert sorted(one["RECUSE_OUTCOME"] for one in closed) == list(case.closes), said
    if case.expect == "stubbed":
        assert case.word in said and not is_recorded(host, closed, case.word), said
    elif case.expect == "detected":
        kind, _, what = case.how.partition(" ")
        if kind == "event":
            host.wait_journal(event(what), after=cursor)
        elif kind == "login":
            found = {"RECUSE_SERVICE": what, "RECUSE_OUTCOME": "partial"}
            assert host.journal(event("logout"), after=cursor, **found)
        else:
            assert kind == "text" and is_recorded(host, closed, what), said
    elif case.expect == "recorded" or case.word in said:
        assert is_recorded(host, closed, case.word), said


def test_nothing_is_unaccounted_for_after_all_that(host: Host) -> None:
    """Each login and session has one outcome, all of it verifies, and the agent never failed."""
    left = [row for row in rows(host) if not row["outcome"] or not row["ended"]]
    assert not left
    verify(host)
    assert host.run("systemctl show -P NRestarts recuse-agent").stdout == "0\n"
    assert not host.journal(event("fault"))


def test_each_case_says_what_it_is() -> None:
    assert len(CASES) >= 60
    for case in CASES:
        assert case.path.stat().st_mode & stat.S_IXUSR, case.name
        assert case.by in ("tty", "pipe", "shell", "outside", "client"), case.name
        assert list(case.closes) == sorted(case.closes), case.name
