"""What a host's logins depend on, in a made-up root with stand-ins for programs."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import socket
import sys
import tty
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Optional, Sequence

import pytest

from recuse import checkup, config, hostsetup, rehearsal
from recuse.checkup import Check, Machine, Ran
from recuse.errors import AgentUnreachable
from recuse.hostsetup import add_service

NSSWITCH = b"""# /etc/nsswitch.conf
passwd:         files systemd   # local first
group:          files systemd
# passwd: recuse
"""
COMMON = """session\t[default=1]\t\t\tpam_permit.so
session\trequisite\t\t\tpam_deny.so
session\trequired\t\t\tpam_permit.so
session\trequired\tpam_unix.so
session\toptional\tpam_systemd.so
"""
OURS = "session\trequired\tpam_recuse.so\n"


class FakeHost:
    """A root directory, and programs that do what the real ones do to it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ran: list[list[str]] = []
        self.answers: dict[str, Ran] = {}
        self.pam_fails = False
        self.pam_half = False
        self.agent_error: Optional[Exception] = None
        self.debts: list[dict[str, Any]] = []
        self.status: dict[str, Any] = {}
        self.sshd = "usepam yes\nsubsystem sftp /usr/lib/openssh/sftp-server\n"
        self.unreachable: Optional[str] = None
        uid, gid = os.getuid(), os.getgid()
        # Not root's: its ids are refused. Files belong to whoever runs the tests.
        self.uid, self.gid = (uid or 4242), (gid or 4242)
        self.write(
            "etc/passwd", "recuse:x:%d:%d::/:/x\nrecuse-ship:x:9:9::/:/x\n" % (self.uid, self.gid)
        )
        self.write("etc/group", "recuse:x:%d:\nrecuse-ship:x:9:\n" % self.gid)
        self.write("etc/nsswitch.conf", NSSWITCH.decode())
        self.write("etc/shells", "/bin/bash\n")
        self.write("etc/pam.d/common-session", COMMON)
        self.write("etc/pam.d/common-session-noninteractive", COMMON)
        self.write("etc/pam.d/sshd", "session required pam_loginuid.so\n@include common-session\n")
        self.write("etc/pam.d/login", "session required pam_loginuid.so\n@include common-session\n")
        self.write("etc/pam.d/sudo", "@include common-session-noninteractive\n")
        self.write("usr/share/pam-configs/recuse", "Name: x\n")
        self.write("usr/sbin/pam-auth-update", "")
        self.write("usr/sbin/sshd", "")
        self.write("lib/x86_64-linux-gnu/security/pam_recuse.so", "")
        self.write("lib/x86_64-linux-gnu/libnss_recuse.so.2", "")
        self.write("usr/lib/recuse/recuse-shell", "")
        shell = root / "usr/lib/recuse/recuse-shell"
        os.chown(shell, self.uid, self.gid)
        shell.chmod(0o6755)
        for directory in ("live", "out", "quarantine"):
            (root / "var/spool/recuse" / directory).mkdir(parents=True)
        (root / "var/spool/recuse/live").chmod(0o700)
        (root / "run/recuse").mkdir(parents=True)
        (root / "run/lock").mkdir(parents=True)
        (root / "run/systemd/system").mkdir(parents=True)
        (root / "etc/recuse/policy.d").mkdir(parents=True)
        (root / "var/lib/recuse-central").mkdir(parents=True)
        self.write("var/lib/recuse/host.key", "")
        self.write("var/lib/recuse/host.pub", "")
        self.write("proc/sys/kernel/seccomp/actions_avail", "kill_process errno allow\n")
        (root / "var/lib/recuse/host.key").chmod(0o600)
        self.sockets = [self._bind("host.sock", 0o660), self._bind("control.sock", 0o666)]
        os.chown(root / "run/recuse/host.sock", -1, self.gid)

    def _bind(self, name: str, mode: int) -> socket.socket:
        bound = socket.socket(socket.AF_UNIX)
        # The path of a socket is short; that of a test's directory may not be.
        here = os.open(".", os.O_RDONLY)
        try:
            os.chdir(self.root / "run/recuse")
            bound.bind(name)
        finally:
            os.fchdir(here)
            os.close(here)
        (self.root / "run/recuse" / name).chmod(mode)
        return bound

    def write(self, path: str, text: str) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def read(self, path: str) -> str:
        return (self.root / path).read_text()

    def run(self, argv: Sequence[str]) -> Ran:
        self.ran.append(list(argv))
        name = os.path.basename(argv[0])
        if name in self.answers:
            return self.answers[name]
        if name == "sshd":
            return Ran(0, self.sshd, "")
        if name == "pam-auth-update":
            return self._pam(list(argv))
        assert name == "python3"
        return Ran(0, "", "")

    def _pam(self, argv: list[str]) -> Ran:
        assert argv[1:4] == ["--package", "--root", str(self.root)] and argv[5] == "recuse"
        if self.pam_fails:  # as the real one does, with status 0, after local modifications
            return Ran(0, "", "pam-auth-update: Local modifications, not updating.\n")
        names = ["common-session"] + ([] if self.pam_half else ["common-session-noninteractive"])
        for name in names:
            text = self.read("etc/pam.d/" + name).replace(OURS, "")
            self.write("etc/pam.d/" + name, text + (OURS if argv[4] == "--enable" else ""))
        return Ran(0, "", "")

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if self.agent_error:
            raise self.agent_error
        if request["verb"] == "grants":
            return {"ok": True, "grants": [], "debts": self.debts}
        return {"ok": True, **self.status}

    def machine(self, **more: Any) -> Machine:
        given: dict[str, Any] = dict(
            root=str(self.root),
            run=self.run,
            ask=self.ask,
            reach=lambda url: self.unreachable,
        )
        return Machine(**{**given, **more})

    def tree(self) -> dict[str, tuple[bytes, int]]:
        return {
            str(p.relative_to(self.root)): (p.read_bytes(), p.stat().st_mode)
            for p in (self.root / "etc").rglob("*")
            if p.is_file()
        }


@pytest.fixture
def host(tmp_path: Path) -> Iterator[FakeHost]:
    made = FakeHost(tmp_path)
    yield made
    for one in made.sockets:
        one.close()


def named(checks: Sequence[Check], name: str) -> Check:
    (found,) = [c for c in checks if c.name == name]
    return found


# What would break logins


def _unlink(path: str) -> Callable[[FakeHost], None]:
    return lambda h: (h.root / path).unlink()


def _chmod(path: str, mode: int) -> Callable[[FakeHost], None]:
    return lambda h: (h.root / path).chmod(mode)


def _write(path: str, text: str) -> Callable[[FakeHost], None]:
    return lambda h: h.write(path, text)


def no_agent(host: FakeHost) -> None:
    host.agent_error = AgentUnreachable("agent does not answer", "look")


def _unloadable(host: FakeHost) -> None:
    host.answers["python3"] = Ran(1, "", "Traceback\nOSError: undefined symbol: x\n")


def _authselect(host: FakeHost) -> None:
    host.write("etc/authselect/nsswitch.conf", NSSWITCH.decode())
    (host.root / "etc/nsswitch.conf").unlink()
    (host.root / "etc/nsswitch.conf").symlink_to("authselect/nsswitch.conf")


BREAKING: dict[str, tuple[Callable[[FakeHost], None], str, str]] = {
    "no shell": (_unlink("usr/lib/recuse/recuse-shell"), "shell", "missing"),
    "shell not set-id": (_chmod("usr/lib/recuse/recuse-shell", 0o755), "shell", "mode 0755"),
    "shell of another": (
        lambda h: (
            os.chown(h.root / "usr/lib/recuse/recuse-shell", h.uid + 1, h.gid),
            (h.root / "usr/lib/recuse/recuse-shell").chmod(0o6755),
        )[0],
        "shell",
        "belongs to",
    ),
    "no user": (_write("etc/passwd", "root:x:0:0::/:/bin/sh\n"), "users", "no user"),
    "no module": (
        _unlink("lib/x86_64-linux-gnu/security/pam_recuse.so"),
        "pam-module",
        "no directory",
    ),
    "no library": (_unlink("lib/x86_64-linux-gnu/libnss_recuse.so.2"), "nss-library", "library"),
    "unloadable": (_unloadable, "pam-module", "undefined symbol"),
    "no profile": (_unlink("usr/share/pam-configs/recuse"), "pam-stacks", "missing"),
    "no nsswitch": (_unlink("etc/nsswitch.conf"), "nsswitch", "cannot be read"),
    "no passwd line": (_write("etc/nsswitch.conf", "group: files\n"), "nsswitch", "no service"),
    "authselect": (_authselect, "nsswitch", "authselect"),
    "nscd": (_write("run/nscd/socket", ""), "name-cache", "nscd"),
    "pam_shells": (
        _write("etc/pam.d/sshd", "account required pam_shells.so\n"),
        "etc-shells",
        "pam_shells",
    ),
    "bad configuration": (_write("etc/recuse/recuse.toml", "[nonsense\n"), "config", "toml"),
    "bad policy": (_write("etc/recuse/policy.d/x.toml", "[[rule]]\neffect='x'\n"), "policy", "x"),
    "no agent": (no_agent, "agent", "does not answer"),
    "no socket": (_unlink("run/recuse/host.sock"), "host.sock", "missing"),
    "open socket": (_chmod("run/recuse/host.sock", 0o666), "host.sock", "mode 0666"),
}


@pytest.mark.parametrize("case", BREAKING)
def test_what_would_break_logins_blocks(host: FakeHost, case: str) -> None:
    spoil, name, words = BREAKING[case]
    spoil(host)
    found = named(checkup.prerequisites(host.machine()), name)
    assert (found.state, found.blocks) == ("fail", True)
    assert words in found.words


def test_overdue_reviews_are_warned_of(host: FakeHost) -> None:
    host.debts = [{"user": "bob", "overdue": True}, {"user": "eve", "overdue": False}]
    found = named(checkup.prerequisites(host.machine()), "reviews")
    assert (found.state, found.blocks) == ("warn", False)
    assert found.words == "1 review of broken glass overdue, of: bob"


def test_listed_shell_is_warned_of_unless_pam_shells_asks_for_it(host: FakeHost) -> None:
    host.write("etc/shells", "/bin/bash\n/usr/lib/recuse/recuse-shell\n")
    found = named(checkup.prerequisites(host.machine()), "etc-shells")
    assert (found.state, found.blocks) == ("warn", False)
    assert "su -s" in found.words
    host.write("etc/pam.d/sshd", "account required pam_shells.so\n")
    assert named(checkup.prerequisites(host.machine()), "etc-shells").state == "ok"


# What doctor says


def test_doctor_looks_for_recuse_consult_if_rules_ask(host: FakeHost) -> None:
    hostsetup.enable(host.machine())
    assert "consult" not in {check.name for check in checkup.look(host.machine())}
    host.write(
        "etc/recuse/policy.d/ask.toml",
        '[ask.x]\nprogram = ["/x"]\non_failure = "match"\non_timeout = "match"\n',
    )
    found = named(checkup.look(host.machine()), "consult")
    assert (found.state, found.blocks) == ("warn", False) and "no such file" in found.words
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(".", os.O_RDONLY)
        os.chdir(host.root / "run/recuse")  # the name of a socket is short
        try:
            listener.bind("consult.sock")
        finally:
            os.chdir(here)
            os.close(here)
        listener.listen()
        found = named(checkup.look(host.machine()), "consult")
        assert found.state == "ok"


def test_doctor_on_a_sound_host_has_nothing_to_say(host: FakeHost) -> None:
    hostsetup.enable(host.machine())
    checks = checkup.look(host.machine())
    assert [c for c in checks if c.state == "fail"] == []
    assert {c.name for c in checks if c.state == "warn"} <= {"append-only", "spool-space"}
    assert named(checks, "enabled").state == "ok"


def test_doctor_says_what_compresses_recordings(host: FakeHost) -> None:
    assert "compression" not in {check.name for check in checkup.look(host.machine())}
    for used, more in (("ISA-L", ""), ("zlib", "; ISA-L takes a quarter of the time: install")):
        host.status = {"spool": {"compressed_by": used}}
        found = named(checkup.look(host.machine()), "compression")
        assert found.state == "ok"
        assert found.words.startswith(f"recordings are compressed by {used}{more}")


def test_doctor_finds_recorders_without_a_filter(host: FakeHost) -> None:
    (host.root / "proc/sys/kernel/seccomp/actions_avail").unlink()
    found = named(checkup.look(host.machine()), "filter")
    assert found.state == "warn" and "CONFIG_SECCOMP_FILTER" in found.hint
    host.write("proc/sys/kernel/seccomp/actions_avail", "")
    for pid, name, real, filters in (
        (11, "recuse-shell", host.uid, 2), (12, "recuse-shell", host.uid, 0),
        (13, "recuse-shell", host.uid + 1, 0), (14, "getent", host.uid, 0),
    ):  # fmt: skip
        uids = "\t".join(str(one) for one in (real, host.uid, host.uid, host.uid))
        status = f"Name:\t{name}\nPid:\t{pid}\nUid:\t{uids}\nSeccomp:\t{filters}\n"
        host.write(f"proc/{pid}/status", status)
    found = named(checkup.look(host.machine()), "filter")
    assert found.state == "warn" and found.words.endswith("process 12")


@pytest.mark.parametrize("level", [":s0", ""], ids=["levels", "no-levels"])
@pytest.mark.parametrize("enforce", ["0", "1"])
@pytest.mark.parametrize(
    ("loaded", "label", "words"),
    [
        (True, "shell_exec_t", "has the module recuse"),
        (True, "lib_t", "recuse-shell is lib_t, not shell_exec_t"),
        (False, "lib_t", "does not have the module recuse"),
    ],
)
def test_doctor_looks_at_the_module_and_the_labels_of_selinux(
    host: FakeHost,
    monkeypatch: pytest.MonkeyPatch,
    enforce: str,
    level: str,
    loaded: bool,
    label: str,
    words: str,
) -> None:
    """As a policy knows contexts: with a level where it has them, else without."""
    assert not [c for c in checkup.look(host.machine()) if c.name == "selinux"]  # has none
    host.write("sys/fs/selinux/enforce", enforce)
    right = dict(checkup.SELINUX_TYPES)
    known = [f"system_u:object_r:recuse_runtime_t{level}"] if loaded else []
    monkeypatch.setattr(checkup, "_knows_context", lambda machine, context: context in known)
    monkeypatch.setattr(
        checkup, "_type_of", lambda machine, path: label if path == checkup.SHELL else right[path]
    )
    check = named(checkup.look(host.machine()), "selinux")
    good = loaded and label == "shell_exec_t"
    assert check.state == ("ok" if good else "fail" if enforce == "1" else "warn")
    assert words in check.words and check.blocks == (check.state == "fail")
    assert good or "restorecon -RF /usr/lib/recuse" in (check.hint or "")
    assert ("semodule --install" in (check.hint or "")) == (not loaded)


def test_doctor_tells_disabled_from_half_enabled(host: FakeHost) -> None:
    assert named(checkup.look(host.machine()), "enabled").state == "warn"
    host.write("etc/nsswitch.conf", add_service(NSSWITCH).decode())
    found = named(checkup.look(host.machine()), "enabled")
    assert found.state == "fail" and "PAM" in found.words
    host.write("etc/recuse/disabled", "")
    assert "disabled exists" in named(checkup.look(host.machine()), "enabled").words


@pytest.mark.parametrize(
    "spoil, name, state, words",
    [
        (lambda h: setattr(h, "sshd", "usepam no\n"), "sshd", "fail", "does not use PAM"),
        (
            _write("etc/ssh/sshd_config", "Match Group x\n  ChrootDirectory /srv/%u\n"),
            "sshd-chroot",
            "warn",
            "/srv/%u",
        ),
        (
            lambda h: setattr(h, "sshd", "usepam yes\nsubsystem sftp internal-sftp\n"),
            "sshd-sftp",
            "ok",
            "stub",
        ),
        (_write("var/spool/recuse/quarantine/x", ""), "quarantine", "warn", "1 damaged"),
        (
            lambda h: (
                h.answers.update(sshd=Ran(255, "", "no /run/sshd")),
                h.write("etc/ssh/sshd_config", "UsePAM yes\n"),
            )[0],
            "sshd",
            "ok",
            "uses PAM",
        ),
        (_chmod("var/lib/recuse/host.key", 0o644), "host-key", "fail", "0644"),
        (_unlink("var/lib/recuse/host.pub"), "host-key", "fail", "host.pub"),
        (_chmod("var/spool/recuse/live", 0o755), "spool", "fail", "others"),
        (_write("etc/nsswitch.conf", "passwd: files recuse\n"), "nsswitch", "fail", "after files"),
    ],
)
def test_doctor_names(
    host: FakeHost, spoil: Callable[[FakeHost], None], name: str, state: str, words: str
) -> None:
    spoil(host)
    found = named(checkup.look(host.machine()), name)
    assert found.state == state and words in found.words


def test_doctor_sees_stacks_that_miss_the_module_or_call_it_too_early(host: FakeHost) -> None:
    hostsetup.enable(host.machine())
    host.write("etc/pam.d/login", "session required pam_unix.so\n")
    found = named(checkup.look(host.machine()), "pam-stacks")
    assert found.state == "fail" and "login" in found.words
    host.write("etc/pam.d/login", "@include common-session\nsession required pam_loginuid.so\n")
    found = named(checkup.look(host.machine()), "pam-stacks")
    assert found.state == "warn" and "pam_loginuid.so in login" in found.words


def test_doctor_warns_of_an_old_backlog_and_a_collector_out_of_reach(host: FakeHost) -> None:
    host.write("etc/recuse/recuse.toml", '[central]\nurl = "https://c.example:8443"\n')
    host.write("etc/recuse/collector.pub", "")
    host.write("var/spool/recuse/out/" + "a" * 64, "x" * 2048)
    host.unreachable = "connection refused"
    then = (host.root / "var/spool/recuse/out" / ("a" * 64)).stat().st_mtime_ns
    checks = checkup.look(host.machine(now_ns=lambda: then + 7200 * 10**9))
    assert named(checks, "backlog").words == (
        "1 segment (2.0 KiB) to be shipped, the oldest waits since 2 h 0 min"
    )
    assert named(checks, "backlog").state == "warn"
    assert named(checks, "collector").words.endswith("connection refused")


@pytest.mark.parametrize("answer, permitted", [("0004b37e", True), ("00000244", False)])
def test_apparmor_itself_is_asked(host: FakeHost, answer: str, permitted: bool) -> None:
    """Its file answers what was written to it, as the other end of a terminal does."""
    kernel, ours = os.openpty()
    tty.setraw(ours)
    (host.root / "sys/kernel/security/apparmor").mkdir(parents=True)
    (host.root / "sys/kernel/security/apparmor/.access").symlink_to(os.ttyname(ours))
    told = f"allow 0x{answer}\ndeny 0x00000000\naudit 0x00000000\nquiet 0x00000000\n"
    os.write(kernel, told.encode())
    assert checkup._is_permitted(host.machine(), "/srv/store/x", 2) == permitted
    assert os.read(kernel, 256) == b"label\0recuse-ship\0\x02/srv/store/x"
    os.close(kernel)
    os.close(ours)


def test_doctor_names_what_apparmor_keeps_from_recuse_ship(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look() -> list[Check]:
        return [one for one in checkup.look(host.machine()) if one.name == "apparmor"]

    permitted = {("/var/lib/recuse-central/x", 2), ("/etc/ssl/ca.pem", 4)}
    monkeypatch.setattr(
        checkup, "_is_permitted", lambda machine, path, right: (path, right) in permitted
    )
    host.write("sys/kernel/security/apparmor/profiles", "recuse-ship (complain)\n")
    assert not look()
    host.write("sys/kernel/security/apparmor/profiles", "recuse-ship (enforce)\n")
    assert [one.state for one in look()] == ["ok"]
    where = '[central]\nurl = "dir:/srv/store"\nca = "/srv/ca.pem"\n'
    host.write("etc/recuse/recuse.toml", where)
    (found,) = look()
    assert found.state == "fail" and found.words.endswith("from /srv/store and /srv/ca.pem")
    assert found.hint == (
        "add to /etc/apparmor.d/local/usr.lib.recuse.recuse-ship, then reload apparmor:"
        " /srv/store/ rw, /srv/store/** rwkl, /srv/ca.pem r,"
    )
    host.write("etc/recuse/recuse.toml", '[central]\nca = "/etc/ssl/ca.pem"\n')
    assert [one.state for one in look()] == ["ok"]


def test_doctor_sees_a_clock_behind_the_ledger(host: FakeHost) -> None:
    host.write("var/lib/recuse/ledger/checkpoint", "")
    then = (host.root / "var/lib/recuse/ledger/checkpoint").stat().st_mtime_ns
    found = named(checkup.look(host.machine(now_ns=lambda: then - 3600 * 10**9)), "clock")
    assert found.state == "fail" and "3600 s" in found.words


def test_checks_as_json(host: FakeHost) -> None:
    found = json.loads(checkup.to_json(checkup.look(host.machine())))
    assert found["worst"] == "warn"
    assert set(found["checks"][0]) == {"name", "state", "words", "hint", "blocks"}


# Lookups as login programs make them


class Overlay:
    """Answers of getent, plain and under the name of su."""

    def __init__(self) -> None:
        self.plain = Ran(0, "root:x:0:0:root:/root:/bin/bash\n", "")
        self.login = Ran(0, "root:x:0:0:root:/root:%s\n" % checkup.SHELL, "")
        self.nobody = Ran(2, "", "")

    def run(self, argv: Sequence[str]) -> Ran:
        if argv[0].endswith("getent"):
            return self.plain
        assert argv[0].endswith("unshare")
        return self.nobody if argv[-1] == "recuse-no-such-user" else self.login


@pytest.mark.parametrize(
    "spoil, state, words",
    [
        ({}, "ok", "recuse-shell"),
        ({"login": Ran(0, "root:x:0:0:root:/root:/bin/bash\n", "")}, "fail", "/bin/bash"),
        ({"login": Ran(0, "root:x:1:0:root:/root:/x\n", "")}, "fail", "another root"),
        ({"login": Ran(2, "", "")}, "fail", "not find root"),
        ({"login": Ran(1, "", "unshare: Operation not permitted")}, "warn", "not permitted"),
        ({"nobody": Ran(0, "x", "")}, "fail", "unknown user"),
        ({"plain": Ran(2, "", "")}, "fail", "getent"),
    ],
)
def test_overlay_check(host: FakeHost, spoil: dict[str, Ran], state: str, words: str) -> None:
    overlay = Overlay()
    for key, value in spoil.items():
        setattr(overlay, key, value)
    found = checkup._check_overlay(host.machine(run=overlay.run), None)
    assert found.state == state and words in found.words


def test_shells_that_are_not_overlaid_are_named(host: FakeHost) -> None:
    def run(argv: Sequence[str]) -> Ran:
        if argv[0].endswith("getent"):
            return Ran(0, "a:x:1:1::/:/bin/bash\nb:x:2:2::/:/opt/odd\nc:x:3:3::/:/bin/false\n", "")
        shell = checkup.SHELL if argv[-1] == "a" else "/opt/odd"
        return Ran(0, "x:x:1:1::/:%s\n" % shell, "")

    found = checkup._check_shells(host.machine(run=run))
    assert found.state == "warn" and found.words.endswith(": /opt/odd (b)")


def test_lookup_as_login_runs_under_the_name_of_su() -> None:
    """The real thing, where namespaces of mounts may be made: root, as the suite runs."""
    ran = checkup._lookup_as_login(Machine(), None, "root")
    assert ran.status == 0 and ran.out.startswith("root:x:0:0:"), ran.err


# The rehearsed login


class FakePam:
    """Stands for python-pam: each call gives its code, and notes that it was made."""

    def __init__(self, **codes: int) -> None:
        self.codes = codes
        self.calls: list[str] = []
        self.code = 0
        self.reason: Optional[str] = None
        self.handle = object()

    def _call(self, name: str) -> int:
        self.calls.append(name)
        self.code = self.codes.get(name, 0)
        self.reason = "reason %d" % self.code
        return self.code

    def authenticate(self, *given: str, **more: bool) -> bool:
        assert given == ("root", "", "recuse")
        assert more == {"resetcreds": False, "call_end": False}
        return self._call("authenticate") == 0

    def open_session(self) -> int:
        return self._call("open_session")

    def close_session(self) -> int:
        return self._call("close_session")

    def end(self) -> int:
        self.calls.append("end")
        return 0


@pytest.mark.parametrize(
    "codes, stage, code, calls",
    [
        ({}, "done", 0, "authenticate open_session close_session end"),
        ({"authenticate": 7}, "auth", 7, "authenticate end"),
        ({"open_session": 6}, "open", 6, "authenticate open_session end"),
        ({"close_session": 4}, "close", 4, "authenticate open_session close_session end"),
    ],
)
def test_rehearsal_goes_as_far_as_pam_lets_it(
    codes: dict[str, int], stage: str, code: int, calls: str
) -> None:
    pam = FakePam(**codes)
    times = iter([10.0, 10.025])
    result = rehearsal.rehearse(pam, lambda pam, said: said.append("hush"), lambda: next(times))
    assert (result.stage, result.code, result.reason) == (stage, code, "reason %d" % code)
    assert " ".join(pam.calls) == calls
    assert result.open_ms == (0.0 if stage == "auth" else 25.0)
    assert result.messages == ([] if stage == "auth" else ["hush"])


def test_what_modules_say_is_heard_through_the_real_calling_convention() -> None:
    class Speaking:
        handle = None

        def pam_set_item(self, handle: object, item: int, value: Any) -> int:
            assert item == rehearsal.PAM_CONV
            self.conversation = ctypes.cast(value, ctypes.POINTER(rehearsal._Conversation)).contents
            return 0

    said: list[str] = []
    speaking = Speaking()
    kept = rehearsal.listen(speaking, said)
    converse = rehearsal._CONVERSE(speaking.conversation.converse)
    message = rehearsal._Message(3, "refused: \xe4".encode())
    answers = ctypes.c_void_p()
    code = converse(1, ctypes.pointer(ctypes.pointer(message)), ctypes.pointer(answers), None)
    assert (code, said) == (0, ["refused: \xe4"])
    response = ctypes.cast(answers, ctypes.POINTER(rehearsal._Response)).contents
    assert (response.text, response.code) == (None, 0)
    ctypes.CDLL(None).free(answers)
    del kept


def test_rehearsal_as_a_program_needs_nothing_but_itself(tmp_path: Path) -> None:
    """Without the package on its path, as -I has it; -S, so that no real python-pam is found."""
    (tmp_path / "pam.py").write_text("raise ImportError('none here')\n")
    argv = [sys.executable, "-S", "-c"]
    script = "import runpy, sys; sys.path.insert(0, %r); runpy.run_path(%r, run_name='__main__')"
    ran = checkup.run_program([*argv, script % (str(tmp_path), rehearsal.__file__)])
    assert json.loads(ran.out) == asdict(rehearsal.Result(reason="none here")), ran.err


def test_agent_ignores_the_service_whatever_is_set() -> None:
    assert config.REHEARSAL_SERVICE == rehearsal.SERVICE
    assert config.SessionConfig(ignored_services=()).ignores("recuse")
    assert not config.SessionConfig(ignored_services=()).ignores("cron")
    assert config.SessionConfig().ignores("cron") and not config.SessionConfig().ignores("sshd")


def _rehearsed(**more: Any) -> Ran:
    return Ran(0, json.dumps({**asdict(rehearsal.Result("done", open_ms=3.4)), **more}), "")


@pytest.mark.parametrize(
    "ran, state, words",
    [
        (_rehearsed(), "ok", "answered a rehearsed login within 3.4 ms"),
        (_rehearsed(open_ms=1500.0), "warn", "1500.0 ms"),
        (_rehearsed(stage="import", reason="no pam"), "warn", "rehearsed: no pam"),
        (_rehearsed(stage="auth", code=7, reason="Denied"), "fail", "let root rehearse"),
        (
            _rehearsed(stage="open", code=28, reason="Module is unknown"),
            "fail",
            "cannot load pam_recuse.so for the rehearsed login: Module is unknown",
        ),
        (
            _rehearsed(stage="open", code=6, reason="Denied", messages=["agent is\nsilent"]),
            "fail",
            "refused: agent is silent",
        ),
        (_rehearsed(stage="close", code=4, reason="odd"), "fail", "could not be ended: odd"),
        (Ran(-signal.SIGALRM, "", ""), "fail", "did not end within 10 s"),
        (Ran(-signal.SIGSEGV, "", ""), "fail", "broke off: status -11"),
        (Ran(1, "", "Traceback\nOSError: x\n"), "fail", "broke off: OSError: x"),
        (Ran(0, '{"stage": 1, "other": 2}', ""), "fail", "broke off"),
    ],
)
def test_rehearsal_check(host: FakeHost, ran: Ran, state: str, words: str) -> None:
    _install_rehearsal(host)
    found = checkup._check_rehearsal(host.machine(run=lambda argv: ran))
    assert (found.state, found.blocks) == (state, state == "fail")
    assert words in found.words


def _install_rehearsal(host: FakeHost) -> None:
    host.write("etc/pam.d/recuse", "session required pam_recuse.so\n")
    (host.root / "usr/lib/recuse/rehearsal-fallback").symlink_to("refuse")


def test_nothing_is_rehearsed_without_its_files_or_while_disabled(host: FakeHost) -> None:
    assert "missing" in checkup._check_rehearsal(host.machine()).words
    _install_rehearsal(host)
    link = host.root / "usr/lib/recuse/rehearsal-fallback"
    link.unlink()
    link.symlink_to("record-locally")
    assert "does not point to refuse" in checkup._check_rehearsal(host.machine()).words
    host.write("etc/recuse/disabled", "")
    assert checkup._check_rehearsal(host.machine()).state == "ok"
    assert host.ran == []


def test_our_own_service_is_no_sign_of_being_enabled(host: FakeHost) -> None:
    _install_rehearsal(host)
    assert "not enabled" in named(checkup.look(host.machine()), "enabled").words
    hostsetup.enable(host.machine())
    assert hostsetup.disable(host.machine()).warnings == ()


def test_packaged_service_lets_in_root_alone() -> None:
    top = Path(__file__).resolve().parents[2]
    lines = (top / "packaging/pam/rehearsal").read_text().split("\n")
    rules = [line.split() for line in lines if line and not line.startswith("#")]
    assert [rule[:3] for rule in rules] == [
        ["auth", "requisite", "pam_rootok.so"],
        ["account", "requisite", "pam_rootok.so"],
        ["password", "requisite", "pam_deny.so"],
        ["session", "required", "pam_recuse.so"],
    ]
    assert rules[-1][3:] == ["fallback=" + checkup.REHEARSAL_FALLBACK]


def test_names_of_checks_are_words() -> None:
    checks = [c for c in checkup.prerequisites(Machine(run=lambda a: Ran(-1, "", "no")))]
    assert all(re.fullmatch(r"[a-z.-]+", c.name) for c in checks)
