"""pam_recuse.so, through libpam from a private directory: what it returns, shows and logs."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, List, Optional, Sequence

import pytest
from native import HERE, HOOK, NONSENSE, ROOT, VARIANTS, Build, environment, failing

from fake_agent import FakeAgent
from recuse import wire

# Linux-PAM's numbers, from _pam_types.h
SUCCESS, SYSTEM_ERR, PERM_DENIED, USER_UNKNOWN = 0, 4, 6, 10
IGNORED = 9  # AUTHINFO_UNAVAIL, which the stack below gives when the module says PAM_IGNORE
MODULE_UNKNOWN = 28


@pytest.fixture(scope="module", params=VARIANTS)
def build(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Build:
    build = Build(request.param, tmp_path_factory.mktemp(f"pam-{request.param}"))
    build.make("pam")
    build.compile("pam_tool", [HERE / "pam_tool.c"], "-lpam")
    return build


@dataclass(frozen=True)
class Ran:
    """What one run of pam_tool printed: in all, and by the first word of the lines."""

    lines: List[str]

    def of(self, word: str) -> List[str]:
        return [ln.partition(" ")[2] for ln in self.lines if ln.partition(" ")[0] == word]

    def code(self, call: str) -> int:
        (code,) = self.of(call)
        return int(code)


@dataclass(frozen=True)
class Login:
    """A login program with the module in its stack, and the paths that the module is told."""

    build: Build
    path: Path

    @property
    def socket(self) -> Path:
        return self.path / "host.sock"

    def fall_back(self, target: Optional[str]) -> None:
        if target is not None:
            (self.path / "fallback").symlink_to(target)

    def disable(self) -> None:
        (self.path / "disabled").touch()

    def run(
        self,
        *calls: str,
        user: str = "alice",
        service: str = "sshd",
        options: Sequence[str] = (),
        kind: str = "session",
        as_root: bool = True,
        before: Optional[Callable[[], None]] = None,
        tool: Optional[Path] = None,
    ) -> Ran:
        """Make the calls; what the module returns ends the stack, PAM_IGNORE gives IGNORED.

        Root is root of a user namespace if the tests run as somebody else. In a namespace without
        a map everybody is nobody, whose files stay theirs all the same.
        """
        module = self.build.path / "pam_recuse.so"
        told = [
            f"socket={self.socket}",
            f"fallback={self.path}/fallback",
            f"disabled={self.path}/disabled",
            *options,
        ]
        stack = f"{kind} [success=done ignore=ignore default=die] {module} {' '.join(told)}\n"
        stack += "session required pam_debug.so open_session=authinfo_unavail"
        stack += " close_session=authinfo_unavail\n"
        confdir = self.path / "pam.d"
        confdir.mkdir(exist_ok=True)
        (confdir / service).write_text(stack)
        (confdir / "other").write_text("session required pam_deny.so\n")
        unshare = ["unshare", "--user", *(["--map-root-user"] if as_root else []), "--"]
        become = [] if as_root and os.geteuid() == 0 else unshare
        program = str(tool or self.build.path / "pam_tool")
        done = subprocess.run(
            [*become, program, str(confdir), service, user, *calls],
            capture_output=True,
            text=True,
            errors="backslashreplace",
            env=environment(),
            timeout=60,
            preexec_fn=before,
        )
        assert done.returncode == 0, done.stderr
        ran = Ran(done.stdout.splitlines())
        assert ran.of("left") == ["0 fds, 0 signals"]
        return ran


@pytest.fixture
def login(build: Build, tmp_path: Path) -> Login:
    return Login(build, tmp_path)


def test_open_allowed_says_nothing(login: Login) -> None:
    with FakeAgent(login.socket, "allow", message=b"not for anybody") as agent:
        ran = login.run("tty=ssh", "rhost=192.0.2.7", "ruser=bob", "open")
        request = agent.request()
    assert request.message == wire.Login(b"sshd", b"alice", b"bob", b"192.0.2.7", b"ssh")
    assert request.uid == os.geteuid()
    assert ran.lines == ["open 0", "left 0 fds, 0 signals"]


def test_open_without_tty_rhost_and_ruser(login: Login) -> None:
    with FakeAgent(login.socket, "allow") as agent:
        assert login.run("open", service="su").code("open") == SUCCESS
        assert agent.request().message == wire.Login(b"su", b"alice", b"", b"", b"")


def test_open_refused_shows_why(login: Login) -> None:
    with FakeAgent(login.socket, "refuse", message="no logins\nafter 18:00 \u2013 ask".encode()):
        ran = login.run("open")
    assert ran.code("open") == PERM_DENIED
    assert ran.of("error") == ["no logins\\nafter 18:00 \u2013 ask"]
    (line,) = ran.of("log")
    assert line.startswith("notice pam_recuse(sshd:session): ")
    assert line.endswith('login of "alice" refused by the agent')


def test_open_refused_without_a_reason(login: Login) -> None:
    with FakeAgent(login.socket, "refuse"):
        assert login.run("open").of("error") == ["recuse: login refused by policy"]


def test_open_refused_with_the_longest_reason(login: Login) -> None:
    with FakeAgent(login.socket, "refuse", message=b"x" * wire.MAX_TEXT):
        assert login.run("open").of("error") == ["x" * wire.MAX_TEXT]


def test_open_refused_with_terminal_escapes_in_the_reason(login: Login) -> None:
    with FakeAgent(login.socket, "refuse", message=b"\x1b[2Jgone\r\x7f \xc2\x9b2J\tok"):
        (text,) = login.run("open").of("error")
    assert text == "?[2Jgone?? \\xc2?2J\tok"


@pytest.mark.parametrize("target", ["refuse", None], ids=["no-agent", "by-policy"])
def test_open_refused_silently(login: Login, target: Optional[str]) -> None:
    login.fall_back(target)
    if target:
        ran = login.run("open:silent")
    else:
        with FakeAgent(login.socket, "refuse", message=b"no"):
            ran = login.run("open:silent")
    assert (ran.code("open"), ran.of("error"), len(ran.of("log"))) == (PERM_DENIED, [], 1)


FALLBACKS = {
    "none": (None, SUCCESS, "warning", "to be recorded locally"),
    "record": ("record-locally", SUCCESS, "warning", "to be recorded locally"),
    "stub": ("allow-with-stub", SUCCESS, "warning", "allowed without the agent ("),
    "refuse": ("refuse", PERM_DENIED, "err", "refused without the agent"),
    "unknown": ("refuse-some", SUCCESS, "warning", "to be recorded locally"),
    "long": ("refuse" + 300 * "x", SUCCESS, "warning", "to be recorded locally"),
}


@pytest.mark.parametrize("fallback", FALLBACKS.values(), ids=FALLBACKS)
@pytest.mark.parametrize("behaviour", ["absent", "garbage"])
def test_open_without_an_agent(
    login: Login, behaviour: str, fallback: "tuple[str, int, str, str]"
) -> None:
    target, code, priority, text = fallback
    login.fall_back(target)
    if behaviour == "absent":
        ran = login.run("open")
    else:
        with FakeAgent(login.socket, behaviour):
            ran = login.run("open")
    assert ran.code("open") == code
    assert len(ran.of("error")) == (code != SUCCESS)
    (line,) = ran.of("log")
    assert line.startswith(f"{priority} ") and text in line and str(login.socket) in line


@pytest.mark.parametrize("target, code", [("record-locally", SUCCESS), ("refuse", PERM_DENIED)])
@pytest.mark.parametrize("behaviour", NONSENSE)
def test_open_with_an_agent_that_talks_nonsense(
    login: Login, behaviour: str, target: str, code: int
) -> None:
    login.fall_back(target)
    with FakeAgent(login.socket, behaviour):
        ran = login.run("open")
    assert ran.code("open") == code
    assert "Protocol error" in ran.of("log")[0]


@pytest.mark.parametrize("verdict", [wire.Verdict.EXEC, wire.Verdict.RECORD])
def test_open_with_a_verdict_that_is_for_shells(login: Login, verdict: wire.Verdict) -> None:
    answer = wire.Answer(verdict, shell=b"/bin/sh")
    login.fall_back("refuse")
    with FakeAgent(login.socket, lambda _: answer):
        assert login.run("open").code("open") == PERM_DENIED


@pytest.mark.parametrize("behaviour", ["hang", "deaf"])
def test_open_past_the_deadline(login: Login, behaviour: str) -> None:
    login.fall_back("refuse")
    with FakeAgent(login.socket, behaviour):
        ran = login.run("open")
    assert ran.code("open") == PERM_DENIED
    assert ran.of("error") == ["recuse: login refused: the recording agent does not answer"]
    assert "Connection timed out" in ran.of("log")[0]


@pytest.mark.parametrize("call", ["open", "close"])
def test_disabled_is_transparent_and_asks_nobody(login: Login, call: str) -> None:
    login.disable()
    login.fall_back("refuse")
    with FakeAgent(login.socket, "refuse") as agent:
        ran = login.run(call)
        assert agent.requests.empty()
    assert (ran.code(call), ran.of("error"), ran.of("log")) == (IGNORED, [], [])


def test_disabled_is_seen_though_who_starts_su_may_not_enter_the_directory(login: Login) -> None:
    login.disable()
    login.path.chmod(0o700)
    with FakeAgent(login.socket, "refuse") as agent:
        ran = login.run("open", "close", before=lambda: os.setresuid(os.geteuid() + 1, -1, -1))
        assert agent.requests.empty()
    assert ran.code("open") == ran.code("close") == IGNORED


@pytest.mark.parametrize("fallback", [None, "refuse"], ids=["agent", "refuse"])
@pytest.mark.parametrize("call", ["open", "close"])
def test_program_that_is_not_root_is_left_alone(
    login: Login, call: str, fallback: Optional[str]
) -> None:
    login.fall_back(fallback)
    with FakeAgent(login.socket, "refuse") as agent:
        ran = login.run(call, service="systemd-user", as_root=False)
        assert agent.requests.empty()
    assert (ran.code(call), ran.of("error"), ran.of("log")) == (IGNORED, [], [])


def test_program_that_is_not_root_is_said_with_debug(login: Login) -> None:
    (line,) = login.run("open", options=["debug"], as_root=False).of("log")
    assert line.endswith(": the program is not root")


def test_open_without_a_user_is_refused(login: Login) -> None:
    with FakeAgent(login.socket, "allow") as agent:
        assert login.run("open", user="").code("open") == USER_UNKNOWN
        assert agent.requests.empty()


def test_open_cuts_claims_that_are_too_long(login: Login) -> None:
    with FakeAgent(login.socket, "allow") as agent:
        calls = (f"rhost={'h' * 3000}", f"ruser={'r' * 3000}", f"tty={'t' * 3000}", "open")
        assert login.run(*calls).code("open") == SUCCESS
        message = agent.request().message
    assert isinstance(message, wire.Login)
    assert (message.rhost, message.ruser, message.tty) == (b"h" * 1024, b"r" * 256, b"t" * 256)


def test_open_of_a_user_that_cannot_be_sent_is_as_without_an_agent(login: Login) -> None:
    login.fall_back("refuse")
    with FakeAgent(login.socket, "allow") as agent:
        ran = login.run("open", user="u" * 257)
        assert agent.requests.empty()
    assert ran.code("open") == PERM_DENIED
    assert "Message too long" in ran.of("log")[0]


def test_log_escapes_what_users_choose(login: Login) -> None:
    name = 'eve"\nsshd[1]: Accepted \\ \x1b[2J\u00e9'
    with FakeAgent(login.socket, "refuse"):
        (line,) = login.run("open", user=name).of("log")
    assert r'"eve\x22\x0asshd[1]: Accepted \x5c \x1b[2J\xc3\xa9"' in line


def test_close_tells_the_agent(login: Login) -> None:
    with FakeAgent(login.socket, "allow") as agent:
        ran = login.run("tty=ssh", "rhost=192.0.2.7", "open", "close")
        assert isinstance(agent.request().message, wire.Login)
        assert agent.request().message == wire.Logout(b"sshd", b"alice", b"ssh")
    assert (ran.code("open"), ran.code("close"), ran.of("log")) == (SUCCESS, SUCCESS, [])


@pytest.mark.parametrize("error, code", [(errno.EMFILE, PERM_DENIED), (errno.ENFILE, SUCCESS)])
def test_open_without_room_to_ask_is_refused_if_limits_are_why(
    login: Login, error: int, code: int
) -> None:
    """su runs with the limits of whoever starts it. A table of the host's that is full is not."""
    with FakeAgent(login.socket, "allow") as agent:
        ran = login.run("open", before=failing("socket", error, 0, int(socket.AF_UNIX)))
        assert agent.requests.empty()
    assert ran.code("open") == code
    assert len(ran.of("error")) == (code == PERM_DENIED)
    (line,) = ran.of("log")
    assert f"({login.socket}: {os.strerror(error)})" in line


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes programs that are set-id root")
@pytest.mark.parametrize("user, code", [(61002, PERM_DENIED), (0, SUCCESS)], ids=["user", "root"])
def test_open_by_what_makes_itself_root_is_refused_if_a_user_started_it(
    build: Build, user: int, code: int
) -> None:
    """As sudo is: what users can use up is theirs to use up, whoever asks for it."""
    fail = failing("socket", errno.ENFILE, 0, int(socket.AF_UNIX))

    def become_user() -> None:
        fail()
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)

    path = Path(tempfile.mkdtemp())
    try:
        path.chmod(0o755)
        shutil.copy(build.path / "pam_tool", path)
        (path / "pam_tool").chmod(0o4755)
        login = Login(build, path)
        ran = login.run("root", "open", before=become_user, tool=path / "pam_tool")
    finally:
        shutil.rmtree(path)
    assert ran.code("open") == code


@pytest.mark.parametrize("behaviour", [*NONSENSE, "refuse", "absent", "hang"])
def test_close_never_fails(login: Login, behaviour: str) -> None:
    login.fall_back("refuse")
    if behaviour == "absent":
        ran = login.run("close")
    else:
        with FakeAgent(login.socket, behaviour):
            ran = login.run("close")
    assert (ran.code("close"), ran.of("error")) == (SUCCESS, [])
    assert len(ran.of("log")) == (behaviour != "refuse")


@pytest.mark.parametrize(
    "call, kind",
    [("auth", "auth"), ("setcred", "auth"), ("acct", "account"), ("chauthtok", "password")],
)
def test_other_types_are_not_this_module(login: Login, call: str, kind: str) -> None:
    with FakeAgent(login.socket, "allow") as agent:
        assert login.run(call, kind=kind).code(call) == MODULE_UNKNOWN
        assert agent.requests.empty()


def test_debug_logs_what_is_usual(login: Login) -> None:
    with FakeAgent(login.socket, "allow"):
        ran = login.run("open", "close", options=["debug"])
    assert [line.rpartition(": ")[2] for line in ran.of("log")] == [
        'login of "alice" allowed',
        'login of "alice" ended',
    ]


def test_unknown_option_is_named_and_ignored(login: Login) -> None:
    with FakeAgent(login.socket, "allow"):
        ran = login.run("open", options=["debgu"])
    assert ran.code("open") == SUCCESS
    assert ran.of("log") == ['warning pam_recuse(sshd:session): unknown option "debgu", ignoring']


def test_module_exports_its_two_entry_points_only(build: Build) -> None:
    assert exported(build.path / "pam_recuse.so") == ["pam_sm_close_session", "pam_sm_open_session"]


def exported(module: Path) -> List[str]:
    done = subprocess.run(
        ["nm", "-D", "--defined-only", str(module)], capture_output=True, text=True, check=True
    )
    return sorted(line.split()[-1] for line in done.stdout.splitlines())


def test_manual_has_the_table_of_the_code() -> None:
    """pam_recuse(8) lists, for every situation of the code, what PAM is told."""
    code = (HOOK / "pam_recuse.c").read_text()
    rows = re.findall(r"\[([A-Z_]+)\] = \{\s+/\* (.+) \*/\s+(PAM_\w+), ", code)
    enum = re.search(r"enum situation \{(.*?)\};", code, re.S)
    assert enum
    assert [row[0] for row in rows] == re.findall(r"[A-Z_]+", enum[1])
    manual = (ROOT / "docs/man/pam_recuse.8").read_text()
    listed = re.findall(r"^\.It (log.*|recuse.*) Ta Dv (PAM_\w+)$", manual, re.M)
    assert listed == [(text, pam) for _, text, pam in rows]
