"""A set-id recuse-shell in a directory of its own, and people who start it.

Nobody of them has an account: the program only knows numbers, and `getent` is the test's.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import pty
import select
import shutil
import struct
import subprocess
import tempfile
import termios
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from native import HERE, HOOK, Build

from fake_agent import FakeAgent, Request
from recuse import cast

RECUSE, USER, OTHER = 61001, 61002, 61003
HEADER = b'{"version":2,"width":80,"height":24}\n'
PATIENCE = 60.0  # seconds until a test gives up waiting
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/", "TERM": "xterm", "LANG": "C.UTF-8"}
VARIANTS = ("musl", "clang", "sanitized")  # as it is shipped, and twice with glibc


class Agent(FakeAgent):
    """One that is waited for as long as everything else."""

    def asked(self) -> Request:
        return self.request(PATIENCE)


class Host:
    """Where recuse-shell is installed, with its agent's socket and its directories."""

    def __init__(self, variant: str, *flags: str) -> None:
        self.sanitized = variant == "sanitized"
        self.root = _make_directory()
        self.shell = self.root / "recuse-shell"
        self.orphans = self.root / "orphan"
        self.recording = self.root / "recording"
        self.pipes_of = USER  # as sshd makes them
        built = _build(variant, self.root, *flags)
        shutil.copy(built, self.shell)
        os.chown(self.shell, RECUSE, RECUSE)
        os.chmod(self.shell, 0o6755)

    def reset(self) -> None:
        """Forget what the test before left behind."""
        shutil.rmtree(self.orphans, ignore_errors=True)
        self.orphans.mkdir(mode=0o700)
        os.chown(self.orphans, RECUSE, RECUSE)
        for name in ("recording", "disabled", "fallback", "getent"):
            (self.root / name).unlink(missing_ok=True)
        self.set_entry("tester", "/bin/sh")
        self.pipes_of = USER

    def set_entry(self, name: str, shell: str) -> None:
        """Make getent answer so for everybody."""
        script = self.root / "getent"
        script.write_text(f"#!/bin/sh\necho '{name}:x:'$2:$2':A Tester:/:{shell}'\n")
        script.chmod(0o755)

    def close(self) -> None:
        shutil.rmtree(self.root)

    def agent(self, behaviour: Any = "record", **more: Any) -> Agent:
        settings = {
            "recording": self.recording, "session": b"s-1", "label": b"recorded",
            "capture_bytes": 1 << 30, **more,
        }  # fmt: skip
        return Agent(self.root / "host.sock", behaviour, **settings)

    def command(self, command: str) -> List[str]:
        return ["recuse-shell", "-c", command]

    @contextlib.contextmanager
    def making_pipes(self) -> Iterator[None]:
        """Let pipes made in the block belong to `pipes_of`."""
        libc = ctypes.CDLL(None)
        libc.setfsuid(self.pipes_of)
        try:
            yield
        finally:
            libc.setfsuid(0)

    def run(
        self,
        argv: Sequence[str],
        stdin: Any = b"",
        uid: int = USER,
        env: Optional[Dict[str, str]] = None,
        **more: Any,
    ) -> "subprocess.CompletedProcess[bytes]":
        """Run to the end without a terminal; `stdin` is bytes or a file."""
        more = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
        more["input" if isinstance(stdin, bytes) else "stdin"] = stdin
        with self.making_pipes():
            return subprocess.run(
                list(argv), executable=self.shell, timeout=PATIENCE, env=env or ENVIRONMENT,
                user=uid, group=uid, extra_groups=[], start_new_session=True, **more,
            )  # fmt: skip

    def start(self, argv: Sequence[str], **more: Any) -> "subprocess.Popen[bytes]":
        """Start without a terminal; each stream is a pipe unless said otherwise."""
        pipe = subprocess.PIPE
        more = {"stdin": pipe, "stdout": pipe, "stderr": pipe, "env": ENVIRONMENT, **more}
        with self.making_pipes():
            return subprocess.Popen(
                list(argv), executable=self.shell, user=USER, group=USER, extra_groups=[],
                start_new_session=True, bufsize=0, **more,
            )  # fmt: skip

    def events(self, path: Optional[Path] = None) -> List[cast.Event]:
        """Return the recording; the agent's header is put before it."""
        data = (path or self.recording).read_bytes()
        _, events = cast.read(cast.split_lines([data if path else HEADER + data]))
        found = list(events)
        assert events.torn is None
        return found

    def recorded(self, code: str) -> bytes:
        return b"".join(e.data for e in self.events() if e.code == code)


class Terminal:
    """A terminal with recuse-shell (or another program) on it, as sshd would give it."""

    def __init__(self, host: Host, size: Tuple[int, int] = (24, 80)) -> None:
        self.host = host
        self.output = b""
        self.master, self.slave = pty.openpty()
        self.resize(*size)
        os.fchown(self.slave, USER, USER)
        os.set_blocking(self.master, False)
        self.process: "subprocess.Popen[bytes]"

    def start(
        self,
        argv: Sequence[str],
        env: Optional[Dict[str, str]] = None,
        uid: int = USER,
        executable: Optional[str] = None,
        controlling: bool = True,
        **streams: Any,
    ) -> "Terminal":
        def take_terminal() -> None:
            if controlling:
                fcntl.ioctl(self.slave, termios.TIOCSCTTY, 0)

        files = {"stdin": self.slave, "stdout": self.slave, "stderr": self.slave, **streams}
        self.process = subprocess.Popen(
            list(argv), executable=executable or self.host.shell, env=env or ENVIRONMENT,
            user=uid, group=uid, extra_groups=[], start_new_session=True,
            preexec_fn=take_terminal, **files,
        )  # fmt: skip
        os.close(self.slave)
        self.slave = -1
        return self

    def resize(self, rows: int, cols: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", rows, cols, 0, 0))

    def modes(self) -> List[Any]:
        return termios.tcgetattr(self.master)

    def _wait(self, writing: bool, deadline: float) -> None:
        left = deadline - time.monotonic()
        events = select.POLLIN | (select.POLLOUT if writing else 0)
        ready = is_ready(self.master, max(left, 0), events)
        assert ready, f"nothing happens; up to now: {self.output[-2000:]!r}"

    def _read(self) -> bool:
        """Read what is there; false at the end."""
        try:
            data = os.read(self.master, 65536)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self.output += data
        return bool(data)

    def wait_for(self, text: bytes) -> bytes:
        """Return what is displayed up to and with `text`, and forget it."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.output:
            self._wait(False, deadline)
            assert self._read() or text in self.output, f"ends with {self.output!r}"
        found, text, self.output = self.output.partition(text)
        return found + text

    def type(self, data: bytes) -> None:
        """Write all of it, reading what is displayed meanwhile."""
        deadline = time.monotonic() + PATIENCE
        while data:
            self._wait(True, deadline)
            self._read()
            try:
                data = data[os.write(self.master, data) :]
            except BlockingIOError:
                pass

    def end(self) -> int:
        """Wait for the end, reading all; return the status as subprocess has it."""
        deadline = time.monotonic() + PATIENCE
        ended = os.pidfd_open(self.process.pid)
        poll = select.poll()
        for fd in (self.master, ended):
            poll.register(fd, select.POLLIN)
        try:
            while True:
                left = max(deadline - time.monotonic(), 0)
                ready = [fd for fd, _ in poll.poll(left * 1000)]
                assert ready, f"does not end; up to now: {self.output[-2000:]!r}"
                if self.master in ready:
                    if not self._read():
                        poll.unregister(self.master)
                elif ready == [ended]:  # and nothing more to read
                    break
        finally:
            os.close(ended)
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        if self.master >= 0:
            os.close(self.master)
            self.master = -1
        if self.slave >= 0:
            os.close(self.slave)
        if hasattr(self, "process") and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def descriptions(error: int) -> List[bytes]:
    """Return what an error is called, by glibc and by musl."""
    ours = {errno.ENOMEM: "Out of memory", errno.EMFILE: "No file descriptors available"}
    return [os.strerror(error).encode(), ours.get(error, os.strerror(error)).encode()]


def is_ready(fd: int, timeout: float = PATIENCE, events: int = select.POLLIN) -> bool:
    """Wait until a descriptor, whatever its number, is ready or will never be."""
    poll = select.poll()
    poll.register(fd, events)
    return bool(poll.poll(timeout * 1000))


def status_of(pid: int) -> Dict[str, str]:
    """Return /proc/PID/status as a table."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def child_of(pid: int) -> int:
    """Return the one child of a process; waits for it."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if children:
            assert len(children) == 1
            return int(children[0])
    raise AssertionError("no child")


def _make_directory() -> Path:
    """Make a directory that everybody may enter, where set-id programs work."""
    for parent in (tempfile.gettempdir(), "/var/tmp", "/run"):
        if not os.statvfs(parent).f_flag & os.ST_NOSUID:
            path = Path(tempfile.mkdtemp(prefix="recuse-shell-", dir=parent))
            path.chmod(0o755)
            return path
    raise AssertionError("every directory for temporary files is mounted nosuid")


def _build(variant: str, root: Path, *more: str) -> Path:
    flags = [
        f"-DRECUSE_TEST_ROOT='\"{root}\"'", f"-DRECUSE_GETENT='\"{root}/getent\"'", *more
    ]  # fmt: skip
    build = Build(variant, root / "build")
    if variant != "sanitized":
        done = subprocess.run(
            ["make", "-s", "-C", str(HOOK), f"BUILD={build.path}", "shell",
             f"CPPFLAGS={' '.join(flags)}",
             *(["CC=clang", "SHELL_LIBC=glibc"] if variant == "clang" else [])],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return build.path / "recuse-shell"
    build.path.mkdir()
    names = (
        "recuse_shell", "filter", "relay", "cast", "sha256", "wire", "confirm", "ends", "escape",
    )  # fmt: skip
    sources = [HOOK / f"{name}.c" for name in names] + [HERE / "sanitizer_options.c"]
    return build.compile("recuse-shell", sources, *(flag.replace("'", "") for flag in flags))
