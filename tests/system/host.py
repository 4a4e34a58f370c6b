"""A throw-away Debian host that boots in under a second, and real clients for it.

    with Host() as host:
        host.run("recuse", "enable")
        assert host.ssh("alice", "exit 3").returncode == 3

The host is an overlay of the image that tests/tools/build-root made, booted by
systemd-nspawn: its own systemd, journal, sshd and network. Every mount is made in a
namespace that ends with the host, so nothing is left behind however the caller dies.
OpenSSH clients run on the machine itself, inside the host's network namespace, and
reach it as 192.0.2.1 from any address in CLIENTS.

Nothing here waits by sleeping: the end of a boot, of a command and of a session each
have an event to wait for.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

TOP = Path(__file__).resolve().parent.parent.parent
TOOLS = TOP / "tests" / "tools"
DIST = TOP / "dist"
ADDRESS = "192.0.2.1"
CLIENTS = ("192.0.2.7", "198.51.100.9", "2001:db8::7")
CLIENT = CLIENTS[0]
FOLLOWED_SECONDS = 5.0  # before the journal is asked for what its follower may have missed
PACKAGES = ("python3-recuse", "recuse", "recuse-collector")

#: Users of the host, all with the same ssh key, password "pw-<name>".
USERS = {
    "alice": "/bin/bash",
    "bob": "/usr/bin/zsh",
    "carol": "/usr/bin/tcsh",
    "dave": "/bin/dash",
    "erin": "/bin/bash",
    "frank": "/bin/dash",
    "nolan": "/usr/sbin/nologin",
}
ADMIN = "alice"  # may sudo without a password

PREPARE = """
set -eu
ssh-keygen -q -t ed25519 -N '' -C test -f /root/client-key
for entry in {users}; do
    user=${{entry%%:*}} shell=${{entry#*:}}
    useradd --create-home --shell "$shell" "$user"
    echo "$user:pw-$user" | chpasswd
    install -d -m 700 -o "$user" -g "$user" "/home/$user/.ssh"
    install -m 600 -o "$user" -g "$user" /root/client-key.pub "/home/$user/.ssh/authorized_keys"
done
echo root:pw-root | chpasswd
install -d -m 700 ~root/.ssh
install -m 600 /root/client-key.pub ~root/.ssh/authorized_keys
groupadd operators
usermod -aG operators erin
echo '{admin} ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/test
touch /home/bob/.zshrc
chown bob:bob /home/bob/.zshrc
# A user who is back in the moment when systemd stops what was left of them waits for it: 30 s.
mkdir -p /etc/systemd/logind.conf.d
printf '[Login]\nUserStopDelaySec=infinity\n' >/etc/systemd/logind.conf.d/test.conf
"""

_numbers = itertools.count(1)


class HostError(Exception):
    """The throw-away host itself failed: nothing was learnt about the product."""


def cache_dir() -> Path:
    return Path(_output([str(TOOLS / "cache-dir")]).strip())


def find_debs() -> list[Path]:
    """Say which packages `make deb` left.

    Raises: HostError if one is missing.
    """
    found = []
    for name in PACKAGES:
        debs = sorted(DIST.glob(f"{name}_*.deb"))
        if len(debs) != 1:
            raise HostError(f"want one {DIST}/{name}_*.deb, found {len(debs)}: run make deb")
        found.append(debs[0])
    return found


class Host:
    """One booted host. Use as a context manager, or call start() and close()."""

    #: How long a login by ssh() may take, if the caller does not say.
    ssh_seconds = 60.0

    def __init__(self, *, packages: bool = True) -> None:
        self.name = f"recuse-{os.getpid()}-{next(_numbers)}"
        self.packages = packages
        self._cache = cache_dir()
        self._dir = Path()
        self._lower: list[Path] = []
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._leader = 0
        self.key = Path()

    # -- life ---------------------------------------------------------------------

    def __enter__(self) -> Host:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:
        """Make a new host and boot it.

        Raises: HostError, with the console's last lines, if it does not come up.
        """
        if os.geteuid() != 0:
            raise HostError("must be root to boot a host")
        self._lower = _make_layers(self._cache, find_debs() if self.packages else [])
        hosts = self._cache / "hosts"
        hosts.mkdir(exist_ok=True)
        for left in hosts.iterdir():  # of a run that was killed
            if not Path("/proc", left.name.split("-")[1]).exists():
                _remove_tree(left)
        self._dir = Path(tempfile.mkdtemp(prefix=self.name + "-", dir=hosts))
        for part in ("upper", "work", "root"):
            (self._dir / part).mkdir()
        (self._dir / "root").chmod(0o755)
        (self._dir / "upper").chmod(0o755)
        self.key = self._dir / "client-key"
        key = next(d / "root/client-key" for d in self._lower if (d / "root/client-key").exists())
        self.key.write_bytes(key.read_bytes())
        self.key.chmod(0o600)
        try:
            self.boot()
        except BaseException:
            self.close()
            raise

    def boot(self) -> None:
        """Boot the host (again, after crash() or power_off()); return when it is up."""
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        path = self._dir / "notify"
        path.unlink(missing_ok=True)
        notify.bind(str(path))
        overlay = ",".join(
            (
                "lowerdir=" + ":".join(map(str, self._lower)),
                f"upperdir={self._dir}/upper",
                f"workdir={self._dir}/work",
            )
        )
        nspawn = [
            "systemd-nspawn",
            f"--directory={self._dir}/root",
            f"--machine={self.name}",
            "--boot",
            "--quiet",
            "--settings=no",
            "--register=no",
            "--private-network",
            "--notify-ready=yes",
            "--link-journal=no",
            "--resolv-conf=off",
            "--timezone=off",
            "--console=pipe",
        ]
        if not Path("/run/systemd/system").is_dir():
            nspawn.append("--keep-unit")
        script = f'mount -t overlay overlay -o "$1" {self._dir}/root && shift && exec "$@"'
        with notify, open(self._dir / "console", "wb") as console:
            self._nspawn = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL"]
                + ["unshare", "--mount", "--propagation", "private"]
                + ["sh", "-c", script, "sh", overlay, *nspawn],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                env={"PATH": os.environ["PATH"], "NOTIFY_SOCKET": str(path), "LC_ALL": "C"},
                start_new_session=True,
            )
            self._leader = self._await_ready(notify)
        path.unlink()
        addresses = "; ".join(
            f"ip address add {a}/{128 if ':' in a else 32} dev lo" for a in (ADDRESS, *CLIENTS)
        )
        self.run(addresses, check=True)

    def _await_ready(self, notify: socket.socket) -> int:
        assert self._nspawn is not None
        leader = 0
        ended = os.pidfd_open(self._nspawn.pid)
        deadline = time.monotonic() + 90
        try:
            while True:
                left = deadline - time.monotonic()
                readable, _, _ = select.select([notify.fileno(), ended], [], [], max(left, 0))
                if notify.fileno() in readable:
                    for line in notify.recv(4096).decode().splitlines():
                        if line.startswith("X_NSPAWN_LEADER_PID="):
                            leader = int(line.partition("=")[2])
                        elif line == "READY=1" and leader:
                            return leader
                elif ended in readable:
                    raise HostError(f"the host did not boot:\n{self.console()}")
                else:
                    raise HostError(f"the host did not boot within 90 s:\n{self.console()}")
        finally:
            os.close(ended)

    def console(self) -> str:
        """Return the last lines of the host's console."""
        text = (self._dir / "console").read_text(errors="replace")
        return "\n".join(text.splitlines()[-60:])

    def power_off(self) -> None:
        """Shut the host down in good order; its files stay for the next boot()."""
        assert self._nspawn is not None
        os.kill(self._leader, signal.SIGRTMIN + 4)
        self._nspawn.wait(60)
        self._nspawn = None

    def crash(self) -> None:
        """End every process of the host at once; its files stay for the next boot()."""
        assert self._nspawn is not None
        if self._leader:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._leader, signal.SIGKILL)
        try:
            self._nspawn.wait(20)
        except subprocess.TimeoutExpired:
            self._nspawn.kill()
            self._nspawn.wait()
        self._nspawn = None
        self._leader = 0

    def close(self) -> None:
        """End the host and remove every file of it."""
        if self._nspawn is not None:
            self.crash()
        if self._dir != Path():
            _remove_tree(self._dir)
            self._dir = Path()

    # -- inside -------------------------------------------------------------------

    def path(self, name: str) -> Path:
        """Return a path, valid on this machine, of a file inside the running host."""
        return Path(f"/proc/{self._leader}/root") / name.lstrip("/")

    def write(self, name: str, text: str, *, mode: int = 0o644) -> None:
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def read(self, name: str) -> str:
        return self.path(name).read_text(errors="surrogateescape")

    def processes(self, name: str) -> Iterator[int]:
        """Give those of that name inside, by their numbers on this machine, the newest first."""
        inside = os.readlink(f"/proc/{self._leader}/ns/pid")
        for pid in sorted((int(n) for n in os.listdir("/proc") if n.isdigit()), reverse=True):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == name:
                    if os.readlink(f"/proc/{pid}/ns/pid") == inside:
                        yield pid

    def copy_out(self, name: str, to: Path) -> Path:
        """Copy a file or tree out of the host, modes and times kept; return where it is."""
        # cp runs here, so that no attribute (append-only) comes along.
        target = to / Path(name).name
        _output(["cp", "-a", "--no-target-directory", str(self.path(name)), str(target)])
        return target

    def copy_in(self, source: Path, name: str) -> None:
        """Copy a file into the host."""
        shutil.copyfile(source, self.path(name))

    def enter(self, *command: str) -> list[str]:
        """Return the command line that runs `command` as root inside the host."""
        inside = ["nsenter", f"--target={self._leader}", "--all", "--root", "--wd"]
        home = ["env", "-i", "HOME=/root", "USER=root", "LOGNAME=root", "LC_ALL=C.UTF-8"]
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return [*inside, *home, path, *command]

    def run(
        self,
        *command: str,
        check: bool = False,
        input: str | None = None,
        timeout_seconds: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as root inside the host, outside any login.

        One argument is a line for sh, several are a command and its arguments.

        Raises: HostError if `check` and it fails, with what it said.
        """
        if len(command) == 1:
            command = ("sh", "-c", command[0])
        result = subprocess.run(
            self.enter(*command),
            check=False,
            input="" if input is None else input,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=timeout_seconds,
        )
        if check and result.returncode:
            raise HostError(
                f"{shlex.join(command)}: exit {result.returncode}\n{result.stdout}{result.stderr}"
            )
        return result

    def popen(self, *command: str) -> subprocess.Popen[str]:
        """Start a command as root inside the host and return without waiting for it."""
        return subprocess.Popen(
            self.enter(*command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="surrogateescape",
        )

    def terminal(self, *command: str, rows: int = 24, columns: int = 80) -> Terminal:
        """Run a command as root inside the host on a terminal of its own."""
        return Terminal(self.enter(*command), rows, columns)

    def json(self, *command: str) -> object:
        """Run a command inside the host that must succeed and print JSON; return its value."""
        return json.loads(self.run(*command, check=True).stdout)

    def install(self) -> None:
        """Install the packages, as an administrator would with dpkg."""
        for deb in find_debs():
            self.copy_in(deb, f"/root/{deb.name}")
        names = [f"/root/{deb.name}" for deb in find_debs()]
        self.run("dpkg", "--install", *names, check=True, timeout_seconds=120)

    # -- clients ------------------------------------------------------------------

    def client(
        self,
        program: str,
        *args: str,
        options: Sequence[str] = (),
        source: str = CLIENT,
    ) -> list[str]:
        """Return the command line of an OpenSSH client (ssh, scp, sftp) of this host."""
        return [
            *self.network(program),
            "-F", "none",
            "-i", str(self.key),
            "-o", f"BindAddress={source}",
            "-o", "IdentitiesOnly=yes",
            "-o", "StrictHostKeyChecking=no",
            "-o", "UserKnownHostsFile=/dev/null",
            "-o", "PasswordAuthentication=no",
            "-o", "LogLevel=ERROR",
            *(word for option in options for word in ("-o", option)),
            *args,
        ]  # fmt: skip

    def network(self, *command: str) -> list[str]:
        """Return the command line that runs a program of this machine in the host's network."""
        return ["nsenter", f"--target={self._leader}", "--net", *command]

    def ssh_command(
        self,
        user: str,
        *command: str,
        tty: bool = False,
        options: Sequence[str] = (),
        source: str = CLIENT,
    ) -> list[str]:
        where = f"{user}@{'::1' if ':' in source else ADDRESS}"
        return self.client(
            "ssh", "-tt" if tty else "-T", where, *command, options=options, source=source
        )

    def ssh(
        self,
        user: str,
        *command: str,
        tty: bool = False,
        input: bytes = b"",
        options: Sequence[str] = (),
        source: str = CLIENT,
        timeout_seconds: float | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Log in with ssh, with no terminal on our side, and wait for its end."""
        return subprocess.run(
            self.ssh_command(user, *command, tty=tty, options=options, source=source),
            check=False,
            input=input,
            capture_output=True,
            timeout=self.ssh_seconds if timeout_seconds is None else timeout_seconds,
        )

    def login(
        self,
        user: str,
        *command: str,
        rows: int = 24,
        columns: int = 80,
        options: Sequence[str] = (),
        source: str = CLIENT,
    ) -> Terminal:
        """Log in with `ssh -tt` from a terminal and return it."""
        line = self.ssh_command(user, *command, tty=True, options=options, source=source)
        return Terminal(line, rows, columns)

    # -- journal ------------------------------------------------------------------

    def cursor(self) -> str:
        """Return where the journal ends now, to look only at what comes later."""
        shown = self.run("journalctl", "--no-pager", "-n", "0", "--show-cursor", check=True).stdout
        return shown.partition("-- cursor: ")[2].strip()

    def journal(self, *matches: str, after: str = "", **fields: str) -> list[dict[str, str]]:
        """Return the journal's entries with these fields, oldest first."""
        wanted = [*matches, *(f"{name}={value}" for name, value in fields.items())]
        if after:
            wanted.insert(0, f"--cursor={after}")
        self.run("journalctl", "--sync", check=True)
        result = self.run("journalctl", "--output=json", "--all", "--no-pager", *wanted)
        found = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
        # Not --after-cursor: with matches, it skips the first of them.
        return [entry for entry in found if entry["__CURSOR"] != after]

    def wait_journal(
        self,
        *matches: str,
        count: int = 1,
        after: str = "",
        timeout_seconds: float = 60,
        **fields: str,
    ) -> list[dict[str, str]]:
        """Wait until the journal holds `count` entries with these fields; return the first so many.

        Raises: HostError if it does not in time, with the end of the journal.
        """
        wanted = [*matches, *(f"{name}={value}" for name, value in fields.items())]
        command = ["journalctl", "--output=json", "--all", "--follow", "--no-tail", *wanted]
        if after:
            command.append(f"--cursor={after}")
        deadline = time.monotonic() + timeout_seconds
        while (left := deadline - time.monotonic()) > 0:
            found: list[dict[str, str]] = []
            with _reading(self.enter(*command)) as lines:
                for line in lines(min(left, FOLLOWED_SECONDS)):
                    entry = json.loads(line)
                    if entry["__CURSOR"] != after:
                        found.append(entry)
                    if len(found) == count:
                        return found
            # journalctl has been seen to miss an entry when it follows.
            found = self.journal(*wanted, after=after)
            if len(found) >= count:
                return found[:count]
        tail = self.run("journalctl", "--no-pager", "-n", "40").stdout
        raise HostError(f"no {count} journal entries with {wanted}, only {len(found)}:\n{tail}")


class Terminal:
    """A program on a terminal that we type on and watch."""

    def __init__(self, command: Sequence[str], rows: int = 24, columns: int = 80) -> None:
        self._master, slave = pty.openpty()
        self.output = b""
        self._seen = 0
        self._set_size(rows, columns)
        attributes = termios.tcgetattr(slave)
        attributes[3] |= termios.ICANON | termios.ECHO
        termios.tcsetattr(slave, termios.TCSANOW, attributes)
        try:
            self.process = subprocess.Popen(
                list(command),
                stdin=slave,
                stdout=slave,
                stderr=slave,
                start_new_session=True,
                preexec_fn=_take_terminal,
                env={**os.environ, "TERM": "xterm-256color"},
            )
        finally:
            os.close(slave)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _set_size(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def resize(self, rows: int, columns: int) -> None:
        """Change the window's size; the kernel tells the program by SIGWINCH."""
        self._set_size(rows, columns)

    def send(self, text: str | bytes) -> None:
        """Type."""
        data = text.encode() if isinstance(text, str) else text
        while data:
            data = data[os.write(self._master, data) :]

    def line(self, text: str) -> None:
        """Type a line and press return."""
        self.send(text + "\r")

    def expect(self, pattern: str | bytes, timeout_seconds: float = 60) -> re.Match[bytes]:
        """Wait until new output matches the regular expression; what it matched is then old.

        Raises: HostError if it does not within the time, or the program ended.
        """
        compiled = re.compile(pattern.encode() if isinstance(pattern, str) else pattern)
        deadline = time.monotonic() + timeout_seconds
        while True:
            match = compiled.search(self.output, self._seen)
            if match:
                self._seen = match.end()
                return match
            if not self._read(deadline):
                raise HostError(
                    f"terminal: no {compiled.pattern!r} in {self.output[self._seen :]!r}"
                    f" (all of it: {self.output!r})"
                )

    def _read(self, deadline: float) -> bool:
        """Read once. Return False at the end of output or of the time."""
        left = max(deadline - time.monotonic(), 0)
        if not select.select([self._master], [], [], left)[0]:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # EIO: the last holder of the other side has closed it
            return False
        self.output += data
        return bool(data)

    def run(self, command: str, timeout_seconds: float = 60) -> bytes:
        """Give a shell a command, wait until it is done; return what it printed."""
        self._seen = len(self.output)
        # The markers are typed in two parts so that their echo is not taken for them. There may be
        # a prompt between that and the first: it comes when the shell is ready, not when we are.
        self.line(f"echo be''gun-; {command}; echo do''ne-$?-")
        match = self.expect(rb"(?s)begun-\r\n(.*?)done-(\d+)-\r\n", timeout_seconds)
        return match.group(1)

    def wait(self, timeout_seconds: float = 60) -> int:
        """Wait for the program's end; return its exit status, negative for a signal."""
        deadline = time.monotonic() + timeout_seconds
        while self._read(deadline):
            pass
        return self.process.wait(max(deadline - time.monotonic(), 0.1))

    def hang_up(self) -> None:
        """Close the terminal's window."""
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    def close(self) -> None:
        """End the program, if it still runs, and the terminal."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.hang_up()


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _output(command: Sequence[str]) -> str:
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    if result.returncode:
        raise HostError(f"{shlex.join(command)}: {result.stdout}{result.stderr}")
    return result.stdout


def _remove_tree(path: Path) -> None:
    # Append-only files cannot be unlinked, not even by root.
    clear = ["chattr", "-R", "-f", "-a", "-i", str(path)]
    subprocess.run(clear, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _reading(command: Sequence[str]) -> Iterator[Callable[[float], Iterator[str]]]:
    """Run a command; give a function that yields its lines until a time has passed."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdout is not None
    stream = process.stdout.fileno()

    def lines(timeout_seconds: float) -> Iterator[str]:
        deadline = time.monotonic() + timeout_seconds
        held = b""
        while select.select([stream], [], [], max(deadline - time.monotonic(), 0))[0]:
            data = os.read(stream, 65536)
            if not data:
                return
            *whole, held = (held + data).split(b"\n")
            for line in whole:
                yield line.decode(errors="surrogateescape")

    try:
        yield lines
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # nsenter's child, too
        process.wait()
        process.stdout.close()


def _make_layers(
    cache: Path, debs: Sequence[Path], kind: str = "image", prepare_more: str = ""
) -> list[Path]:
    """Return the overlay's lower directories, upmost first: packages, users, image."""
    image = Path(_output([str(TOOLS / "build-root"), kind]).strip())
    users = " ".join(f"{name}:{shell}" for name, shell in USERS.items())
    prepare = PREPARE.format(users=users, admin=ADMIN) + prepare_more
    layers = [_make_layer(cache, "users", prepare, [], [image]), image]
    if debs:
        # Installed with no init running: nothing is started, all is set up.
        install = "dpkg --install " + " ".join(f"/run/debs/{deb.name}" for deb in debs)
        layers.insert(0, _make_layer(cache, "debs", install, debs, layers))
    return layers


def _make_layer(
    cache: Path, kind: str, script: str, debs: Sequence[Path], lower: Sequence[Path]
) -> Path:
    """Run a script in the lower layers; keep what it changed under the hash of its causes."""
    digest = hashlib.sha256("\0".join([script, *map(str, lower)]).encode())
    for deb in debs:
        digest.update(deb.read_bytes())
    layer = cache / f"{kind}-{digest.hexdigest()[:16]}"
    with open(cache / f"{kind}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not layer.exists():
            with tempfile.TemporaryDirectory(prefix="layer-", dir=cache) as made:
                for part in ("upper", "work", "root", "debs"):
                    Path(made, part).mkdir()
                    Path(made, part).chmod(0o755)
                for deb in debs:
                    shutil.copyfile(deb, Path(made, "debs", deb.name))
                nspawn = f"systemd-nspawn --directory={made}/root --quiet --register=no"
                if not Path("/run/systemd/system").is_dir():
                    nspawn += " --keep-unit"
                nspawn += f" --machine=layer-{os.getpid()} --settings=no --private-network"
                nspawn += f" --link-journal=no --bind-ro={made}/debs:/run/debs"
                nspawn += " --resolv-conf=off --timezone=off --pipe"
                overlay = f"lowerdir={':'.join(map(str, lower))}"
                overlay += f",upperdir={made}/upper,workdir={made}/work"
                inside = f"export LC_ALL=C DEBIAN_FRONTEND=noninteractive\n{script}"
                mounted = f'mount -t overlay overlay -o "{overlay}" {made}/root'
                _output(
                    ["unshare", "--mount", "--propagation", "private", "sh", "-c"]
                    + [f'{mounted} && exec {nspawn} sh -c "$1" </dev/null', "sh", inside]
                )
                os.rename(f"{made}/upper", layer)
            _prune(cache, kind)
    return layer


def _prune(cache: Path, kind: str, keep: int = 4) -> None:
    """Remove the oldest layers of a kind that no running host stands on."""
    layers = sorted(cache.glob(f"{kind}-*"), key=lambda path: path.stat().st_mtime)
    mounts = ""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            mounts += (process / "mounts").read_text()
    for layer in layers[:-keep]:
        if layer.is_file():
            layer.unlink()
        elif str(layer) not in mounts:
            shutil.rmtree(layer, ignore_errors=True)
