"""What users may try in order to act unrecorded or unaccounted, one file each in bypass/.

A file begins with what it is:

    # tries:  one line
    # as:     the user
    # by:     tty (ssh -tt with it as the command), pipe (ssh -T), shell (typed into an
    #         interactive shell), outside (the user's process in no login), client (a script of
    #         the user's own machine, with ssh, scp and sftp to $HOST; `root` is what the kernel
    #         or an administrator does there meanwhile)
    # expect: recorded | stubbed | refused | detected: what shows it
    # shows:  what else has to show it (any number of these lines)
    # closes: outcomes of all sessions, sorted, or none (default: recorded)
    # logins: how many logins end (default: 1, outside: 0)
    # exit:   its exit status, or any if it cannot end well (default: 0)

What shows something is one of

    event KIND [FIELD=WORDS]   an event of the journal, with WORDS in a field of it
    login SERVICE OUTCOME      a login's own stub
    kind KIND OUTCOME          a session of that kind
    command WORDS              the command in a session's entry
    service USER OUTCOME       a session in an implied login: a process of no login
    text WORDS                 what a recording shows
    none of service NAME       that nothing is entered for a service: it is left alone
    end interrupted STATUS...  a session's end: flagged so, or with one of these statuses
    finding USER | no finding  what recuse-coverage finds
    journal USER WORDS         a line in the journal that a process of that user wrote

The case's own word is ACTED-<its name>: what it does and ought to be accounted for. Whatever is
expected, that word is in a recording if a client saw it, unless the case is `stubbed` or
`detected`; a line with WORKED says that something worked that must not.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from accounts import RULES, enable, event, rows, verify
from host import ADDRESS, Host

from recuse import cast, records
from recuse.archive import LedgerArchive, open_archive
from recuse.catalog import Catalog
from recuse.errors import NotFound

HERE = Path(__file__).parent / "bypass"
INSIDE = "/usr/local/lib/bypass"

#: Services whose logins are counted.
LOGINS = ("sshd", "su", "su-l", "sudo", "sudo-i")

#: Where content of a session could be left.
KEPT = ("/var/spool/recuse", "/var/lib/recuse", "/var/lib/recuse-ship", "/var/lib/recuse-central")

#: Programs of the host by which cases try things: one that is missing would be refused as well.
TOOLS = frozenset(
    "at chattr choom chrt chsh crontab loginctl machinectl pidwait screen script setpriv"
    " setsid strace stty su sudo systemctl systemd-run taskset tmux truncate unshare".split()
)

#: dave is exempt and may become root; what he does as root is recorded where a shell is run.
SUDOERS = "dave ALL=(ALL) NOPASSWD: ALL\ngrace ALL=(ALL) NOPASSWD: ALL\n"

#: Users of policies of their own.
MORE_USERS = ("grace", "heidi", "ivan", "judy", "kim", "mia", "nick")
GROUNDS = 'reason = "a test"\nowner = "ops@example.org"\nexpires = 2099-12-31\n'
POLICY = f"""
[purposes.drill]
text.en = "drill"

[ask.judge]
program = ["{INSIDE}/lib.judge"]
on_failure = "no-match"
on_timeout = "no-match"

[[rule]]
name = "grace-may-pause"
effect = "record"
users = ["grace"]
pause = "10m"
{GROUNDS}
[[rule]]
name = "heidi-agrees"
effect = "record"
users = ["heidi"]
confirm = true

[[rule]]
name = "ivan-is-withheld"
effect = "exempt"
users = ["ivan"]
supervised = true
{GROUNDS}
[[rule]]
name = "judy-by-expression"
effect = "exempt"
users = ["judy"]
when = "command == 'free'"
{GROUNDS}
[[rule]]
name = "judy-by-program"
effect = "exempt"
users = ["judy"]
ask = "judge"
{GROUNDS}
[[rule]]
name = "kim-in-batch"
effect = "exempt"
users = ["kim"]
tags = ["batch"]
{GROUNDS}"""

GLASS = """
[break_glass]
users = ["frank", "mia", "nick"]
longest = "1h"
review_within = "1h"
reviewers = ["leads"]

[approvers]
leads = ["erin@example.org"]
"""

PREPARE = f"""
for user in {" ".join(MORE_USERS)}; do
    useradd --create-home --shell /bin/bash $user
    echo $user:pw-$user | chpasswd
    install -d -m 700 -o $user -g $user /home/$user/.ssh
    install -m 600 -o $user -g $user /root/client-key.pub /home/$user/.ssh/authorized_keys
done
"""


@dataclass(frozen=True)
class Case:
    """One way to try, as its file describes it."""

    path: Path
    tries: str
    user: str
    by: str
    expect: str
    shows: tuple[str, ...]
    closes: tuple[str, ...]
    logins: int
    status: int | None

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def word(self) -> str:
        return f"ACTED-{self.name}"

    @classmethod
    def read(cls, path: Path) -> Case:
        lines = re.findall(r"^# (\w+): +(.*)$", path.read_text(), re.MULTILINE)
        found = dict(lines)
        shows = tuple(value for name, value in lines if name == "shows")
        expect, _, how = found["expect"].partition(": ")
        assert expect in ("recorded", "stubbed", "refused", "detected"), path
        assert bool(how) == (expect == "detected"), path
        closes, status = found.get("closes", "recorded"), found.get("exit", "0")
        return cls(
            path, found["tries"], found["as"], found["by"], expect,
            (how, *shows) if how else shows,
            () if closes == "none" else tuple(closes.split()),
            int(found.get("logins", found["by"] != "outside")),
            None if status == "any" else int(status),
        )  # fmt: skip


CASES = [
    Case.read(path)
    for path in sorted(HERE.iterdir())
    if path.is_file() and not path.name.startswith("lib.")
]


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host() as host:
        host.run(PREPARE, check=True)
        for path in HERE.iterdir():
            if path.is_file():
                host.write(f"{INSIDE}/{path.name}", path.read_text(), mode=0o755)
        host.write("/etc/recuse/approval.d/10-test.toml", GLASS)
        enable(host, RULES + POLICY)
        host.write("/etc/sudoers.d/bypass", SUDOERS, mode=0o440)
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
            status = terminal.wait()
        return status, terminal.output.decode(errors="replace")
    if case.by == "outside":
        who = ("setpriv", f"--reuid={case.user}", f"--regid={case.user}", "--init-groups")
        told = host.run(*who, "env", f"HOME=/home/{case.user}", inside)
        return told.returncode, told.stdout + told.stderr
    assert case.by == "client", case.by
    environment = {**os.environ, "PATH": f"{clients}:{os.environ['PATH']}", "HOST": ADDRESS}
    here = subprocess.Popen(
        [str(case.path)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, env=environment, cwd=clients, start_new_session=True,
    )  # fmt: skip
    with here:
        try:
            seen, _ = here.communicate(timeout=60)
        except BaseException:  # what it started would be there in the next case
            os.killpg(here.pid, signal.SIGKILL)
            raise
    return here.returncode, seen.decode(errors="replace")


def open_ledger(host: Host) -> Catalog:
    """Read the host's ledger; segments are in its spool, or in the store on it."""
    sources = open_archive(str(host.path("/")))
    view = records.View()
    for source in sources:
        for _, entry, _ in source.entries():
            assert entry is not None
            view.apply(records.parse(entry))
    # Not as a store: SQLite follows the link that leads into the host.
    central = str(host.path("/var/lib/recuse-central"))
    store = LedgerArchive(central, [central, f"{central}/blobs"])
    return Catalog(sources, view, stores=[store])


def text_of(ledger: Catalog, session: str) -> str:
    """Say what the recording of a session shows; nothing if it has none."""
    try:
        header, events = ledger.recording(ledger.session(session)).read()
    except NotFound:
        return ""
    return "".join(cast.write_text(header, events))


def is_recorded(ledger: Catalog, sessions: list[str], words: str) -> bool:
    """Say whether one of these sessions has a recording in which that stands."""
    return any(words in text_of(ledger, one) for one in reversed(sessions))


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


def check_shown(
    host: Host, ledger: Catalog, sessions: list[str], cursor: str, before: int, how: str
) -> None:
    """Assert that something shows what was done."""
    kind, _, rest = how.partition(" ")
    rows = [ledger.session(one) for one in sessions]
    if kind == "event":
        name, _, more = rest.partition(" ")
        field, _, words = more.partition("=")
        host.wait_journal(event(name), after=cursor)
        told = host.journal(event(name), after=cursor)  # all of them, not the first
        assert not more or any(words in one[field] for one in told), told
    elif kind == "login":
        service, outcome = rest.split()
        assert host.journal(
            event("logout"), after=cursor, RECUSE_SERVICE=service, RECUSE_OUTCOME=outcome
        ), how
    elif kind == "kind":
        assert rest in [f"{row.kind} {row.outcome}" for row in rows], rows
    elif kind == "command":
        assert any(rest in (row.command or "") for row in rows), rows
    elif kind == "service":
        user, outcome = rest.split()
        implied = [row for row in rows if row.service not in LOGINS]
        assert [(row.user, row.outcome) for row in implied] == [(user, outcome)], rows
    elif kind == "end":
        flag, *statuses = rest.split()
        (row,) = rows
        assert flag in row.flags or str(row.exit_status) in statuses, row
    elif kind == "journal":
        user, _, words = rest.partition(" ")
        uid = host.run("id", "-u", user, check=True).stdout.strip()
        host.wait_journal(f"_UID={uid}", f"MESSAGE={words}", after=cursor)
    elif kind == "text":
        assert is_recorded(ledger, sessions, rest), how
    elif how.startswith("none of service "):
        name = how.rpartition(" ")[2]
        logins = [one for one in ledger.view.logins.values() if one.seq >= before]
        assert not [one for one in logins if (one.service or "").startswith(name)], logins
    else:
        assert kind in ("finding", "no"), how
        counted = host.run("recuse", "doctor", "--coverage", "--settle", "0", "--json")
        found = [one["user"] for one in json.loads(counted.stdout)["findings"]]
        assert found == ([] if kind == "no" else [rest]), counted.stdout


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_way(host: Host, clients: Path, known: set[str], case: Case) -> None:
    cursor = host.cursor()
    status, said = run(host, clients, case)
    assert "WORKED" not in said, said
    assert case.status in (None, status), (status, said)
    wait_for_ends(host, "logout", case.logins, cursor, known)
    closed = wait_for_ends(host, "closed", len(case.closes), cursor, known)
    assert sorted(one["RECUSE_OUTCOME"] for one in closed) == list(case.closes), said
    sessions = [one["RECUSE_SESSION"] for one in closed]
    ledger = open_ledger(host)
    first = min(ledger.session(one).seq for one in sessions) if sessions else 0
    for how in case.shows:
        check_shown(host, ledger, sessions, cursor, first, how)
    if case.expect == "stubbed":
        assert case.word in said and not is_recorded(ledger, sessions, case.word), said
    elif case.expect == "recorded" or (case.expect == "refused" and case.word in said):
        assert is_recorded(ledger, sessions, case.word), said


def test_nothing_is_unaccounted_for_after_all_that(host: Host, known: set[str]) -> None:
    """Each login and session has one outcome, all of it verifies, and the agent never failed."""
    left = [row for row in rows(host) if not row["outcome"] or not row["ended"]]
    assert not left
    # A session that its case does not name could be taken for one of the next case.
    assert known >= {one["RECUSE_SESSION"] for one in host.journal(event("closed"))}
    verify(host)
    assert host.run("systemctl show -P NRestarts recuse-agent").stdout == "0\n"
    assert not host.journal(event("fault"))


def test_nothing_that_root_reads_of_it_steers_a_terminal(host: Host) -> None:
    """What users chose, and the agent tells of, is escaped in the journal and in every list."""
    told = host.journal("_SYSTEMD_UNIT=recuse-agent.service")
    for one in told:
        for name, value in one.items():
            assert isinstance(value, str) and value.isprintable(), (name, value)
    assert any("\\x1b" in one.get("RECUSE_TICKET", "") for one in told)
    for words in ("sessions", "requests", "grants --all", "grants --debts"):
        shown = host.run(f"recuse {words}; true", check=True).stdout
        assert all(char.isprintable() or char == "\n" for char in shown), (words, shown)


def test_no_byte_of_stubbed_sessions_was_kept(host: Host) -> None:
    """Whatever is searched: recordings, segments, ledger, state, central storage."""
    words = [case.word.encode() for case in CASES if case.expect == "stubbed"]
    cursor, searched = host.cursor(), 0
    host.ssh("alice", "echo of-a-recorded-session")  # else nothing may be found for want of search
    host.wait_journal(event("closed"), after=cursor)
    for place in KEPT:
        for path in host.path(place).rglob("*"):
            try:
                data = path.read_bytes()
            except (FileNotFoundError, IsADirectoryError):  # shipped meanwhile
                continue
            if data.startswith(b"\x1f\x8b"):
                data = gzip.decompress(data)
            assert not [word for word in words if word in data], path
            searched += b"of-a-recorded-session" in data
    assert len(words) >= 4 and searched


def test_each_case_says_what_it_is(host: Host) -> None:
    """And what it is done with is there."""
    assert len(CASES) >= 133
    tools: set[str] = set()
    for case in CASES:
        assert case.path.stat().st_mode & stat.S_IXUSR, case.name
        assert case.by in ("tty", "pipe", "shell", "outside", "client"), case.name
        assert list(case.closes) == sorted(case.closes), case.name
        tools.update(re.findall(r"[a-z][a-z-]+", case.path.read_text()))
    tools &= TOOLS
    assert tools == TOOLS
    missing = [one for one in sorted(tools) if host.run("which", one).returncode]
    assert not missing
