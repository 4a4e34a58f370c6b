"""A throw-away Debian host with a kernel of its own, for what this machine's kernel lacks.

    with Machine("security=selinux", "selinux=1", "enforcing=1") as machine:
        machine.run("getenforce", check=True)
        assert machine.ssh("alice", "exit 3").returncode == 3

It is a Host in all that tests do with it, but it is Debian's own kernel with Debian's
policies of SELinux and AppArmor, on a disk that is labelled for SELinux, under qemu. The
processor is emulated, as tests run where there is no other: a boot takes some ten seconds,
and a login about one. What is written to the disk is forgotten with the machine.

Root's commands come in by a door of its own (dropbear, with neither PAM nor anything else
that recuse is in), so that none of them is a login. Clients are the OpenSSH programs of
this machine, in a network of which the machine is the only other member.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import select
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from host import (
    ADDRESS,
    CLIENTS,
    Host,
    HostError,
    Terminal,
    _make_layers,
    _output,
    _prune,
    find_debs,
)

#: Where root's commands come in.
DOOR = 2222

#: Users whom SELinux confines, if it is in force.
CONFINED = {"bob": "user_u", "carol": "staff_u", "frank": "sysadm_u"}

# The door's domain is that of an administrator, and its programs' with it.
PREPARE_DISK = """
set -eu
install -m 755 /usr/sbin/dropbear /usr/local/sbin/door
dropbearkey -t ed25519 -f /root/door.key >/dev/null 2>&1
cat >/etc/systemd/system/door.service <<'UNIT'
[Unit]
After=network-here.service
[Service]
ExecStart=/usr/local/sbin/door -F -E -s -j -k -r /root/door.key -p {door}
SELinuxContext=unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023
KillMode=process
UNIT
cat >/etc/systemd/system/network-here.service <<'UNIT'
[Unit]
Before=network.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/ip address add {address}/24 dev eth0
ExecStart=/bin/ip link set eth0 up
ExecStart=/bin/ip route add default dev eth0
UNIT
cat >/etc/systemd/system/up.service <<'UNIT'
[Unit]
After=door.service
[Service]
Type=exec
ExecStart=/bin/sh -c 'systemctl is-system-running --wait; echo up >/dev/ttyS1'
SELinuxContext=unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023
UNIT
wants=/etc/systemd/system/multi-user.target.wants
mkdir -p $wants
for unit in door network-here up; do
    ln -s ../$unit.service $wants/
done
for unit in modprobe@.service systemd-udev-settle.service e2scrub_reap.service; do
    ln -sf /dev/null /etc/systemd/system/$unit
done
sed -i 's/^SELINUX=.*/SELINUX=enforcing/' /etc/selinux/config
for entry in {confined}; do
    semanage login --noreload --add --seuser ${{entry#*:}} ${{entry%:*}}
done
setsebool -P -N ssh_sysadm_login 1
cp /etc/selinux/default/policy/policy.* /root/policy-without-recuse
"""


class Machine(Host):
    """One booted machine; the arguments are the kernel's, besides those that it needs anyhow."""

    ssh_seconds = 90.0

    def __init__(self, *arguments: str, packages: bool = True) -> None:
        super().__init__(packages=packages)
        self.arguments = arguments
        self.boot_seconds = 0.0
        self._qemu: subprocess.Popen[bytes] | None = None
        self._door: subprocess.Popen[bytes] | None = None

    # -- life ---------------------------------------------------------------------

    def start(self) -> None:
        if os.geteuid() != 0:
            raise HostError("must be root to boot a machine")
        confined = " ".join(f"{user}:{seuser}" for user, seuser in CONFINED.items())
        prepare = PREPARE_DISK.format(door=DOOR, address=ADDRESS, confined=confined)
        self._lower = _make_layers(
            self._cache, find_debs() if self.packages else [], "disk", prepare
        )
        disk = _make_disk(self._cache, self._lower)
        self._dir = Path(tempfile.mkdtemp(prefix=self.name + "-"))
        self.key = self._dir / "client-key"
        key = next(d / "root/client-key" for d in self._lower if (d / "root/client-key").exists())
        shutil.copyfile(key, self.key)
        self.key.chmod(0o600)
        try:
            self._boot(disk)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Machine:
        self.start()
        return self

    def boot(self) -> None:
        raise NotImplementedError("a machine's disk is forgotten when it ends")

    def _boot(self, disk: Path) -> None:
        root = self._lower[-1]
        (kernel,) = (root / "boot").glob("vmlinuz-*")
        (initrd,) = (root / "boot").glob("initrd.img-*")
        ours = " ".join(f"ip address add {a}/24 dev tap0;" for a in CLIENTS if ":" not in a)
        network = f"ip link set lo up; ip tuntap add tap0 mode tap; {ours} ip link set tap0 up"
        line = "root=/dev/vda rw console=ttyS0 quiet panic=-1 net.ifnames=0 audit=1"
        # Before a rate limit of the kernel's own, no denial is left out.
        line += " printk.devkmsg=on audit_backlog_limit=8192"
        command = [
            "qemu-system-x86_64",
            "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024",
            "-nodefaults", "-display", "none", "-monitor", "none", "-no-reboot",
            "-kernel", str(kernel), "-initrd", str(initrd),
            "-append", " ".join((line, *self.arguments)),
            "-drive", f"file={disk},if=virtio,format=raw,snapshot=on",
            "-netdev", "tap,id=net,ifname=tap0,script=no,downscript=no",
            "-device", "virtio-net-pci,netdev=net",
            "-device", "virtio-rng-pci",
            "-chardev", f"socket,id=console,path={self._dir}/tty,server=on,wait=off,"
            f"logfile={self._dir}/console",
            "-serial", "chardev:console",
            "-chardev", f"socket,id=up,path={self._dir}/up",
            "-serial", "chardev:up",
        ]  # fmt: skip
        began = time.monotonic()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as waiting:
            waiting.bind(f"{self._dir}/up")
            waiting.listen()
            with open(self._dir / "qemu", "wb") as log:
                self._qemu = subprocess.Popen(
                    ["setpriv", "--pdeathsig", "KILL", "unshare", "--net"]
                    + ["sh", "-c", f'{network} && exec "$@"', "sh", *command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            self._leader = self._qemu.pid
            self._await_up(waiting)
        self.boot_seconds = time.monotonic() - began
        self._door = subprocess.Popen(
            self._through_door("-M", "-N", "-n", "-o", "PermitLocalCommand=yes",
                               "-o", "LocalCommand=echo open"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._door.stdout is not None
        with self._door.stdout as said:
            opened = said.readline() == b"open\n"
        if not opened:
            raise HostError(f"the machine's door does not open:\n{self.console()}")

    def _await_up(self, waiting: socket.socket) -> None:
        assert self._qemu is not None
        ended = os.pidfd_open(self._qemu.pid)
        deadline = time.monotonic() + 180
        stream: socket.socket | None = None
        told = b""
        try:
            while True:
                watched: list[socket.socket | int] = [stream or waiting, ended]
                left = max(deadline - time.monotonic(), 0)
                readable, _, _ = select.select(watched, [], [], left)
                if stream is None and waiting in readable:
                    stream, _ = waiting.accept()
                elif stream is not None and stream in readable:
                    told += stream.recv(4096)
                    if b"up" in told:
                        return
                elif ended in readable:
                    raise HostError(f"the machine ended:\n{self.console()}")
                else:
                    raise HostError(f"the machine did not boot within 180 s:\n{self.console()}")
        finally:
            os.close(ended)
            if stream is not None:
                stream.close()

    def console(self) -> str:
        """Return the last lines of qemu and of the machine's console."""
        text = ""
        for name in ("qemu", "console"):
            with contextlib.suppress(FileNotFoundError):
                text += (self._dir / name).read_text(errors="replace")
        return "\n".join(text.splitlines()[-60:])

    def power_off(self) -> None:
        raise NotImplementedError("a machine's disk is forgotten when it ends")

    def crash(self) -> None:
        """End the machine at once."""
        for process in (self._door, self._qemu):
            if process is not None:
                process.kill()
                process.wait()
        self._door = self._qemu = None

    def close(self) -> None:
        self.crash()
        if self._dir != Path():
            shutil.rmtree(self._dir, ignore_errors=True)
            self._dir = Path()

    # -- inside -------------------------------------------------------------------

    def _through_door(self, *args: str) -> list[str]:
        options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]
        options += ["IdentitiesOnly=yes", f"ControlPath={self._dir}/door"]
        words = [word for option in options for word in ("-o", option)]
        return self.network(
            "ssh", "-F", "none", "-i", str(self.key), "-p", str(DOOR), *words, *args,
            f"root@{ADDRESS}",
        )  # fmt: skip

    def enter(self, *command: str, tty: bool = False) -> list[str]:
        """Return the command line that runs `command` as root inside the machine."""
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        clean = ["env", "LC_ALL=C.UTF-8", f"PATH={path}", *command]
        return [*self._through_door("-tt" if tty else "-T"), shlex.join(clean)]

    def terminal(self, *command: str, rows: int = 24, columns: int = 80) -> Terminal:
        return Terminal(self.enter(*command, tty=True), rows, columns)

    def serial_line(self) -> SerialLine:
        """Return the machine's first serial line, as somebody who sits at it has it."""
        return SerialLine(self._dir / "tty")

    def path(self, name: str) -> Path:
        raise NotImplementedError("a machine's files are its own: use read, write, copy_out")

    def processes(self, name: str) -> Iterator[int]:
        raise NotImplementedError("a machine's processes are its own: use run")

    def write(self, name: str, text: str, *, mode: int = 0o644) -> None:
        where = shlex.quote(name)
        script = f'mkdir -p "$(dirname {where})"; cat >{where}; chmod {mode:o} {where}'
        # Labelled as what belongs there, as a file that cp or an editor puts there is.
        script += f"; ! selinuxenabled || restorecon {where}"
        self.run(script, check=True, input=text)

    def read(self, name: str) -> str:
        return self.run("cat", name, check=True).stdout

    def copy_out(self, name: str, to: Path) -> Path:
        raise NotImplementedError

    def copy_in(self, source: Path, name: str) -> None:
        with open(source, "rb") as stream:
            subprocess.run(
                self.enter("sh", "-c", f"cat >{shlex.quote(name)}"), stdin=stream, check=True
            )

    # -- clients ------------------------------------------------------------------

    @contextlib.contextmanager
    def shells(self, *users: str) -> Iterator[list[Terminal]]:
        """Log each of the users in at the same time, and wait for their prompts."""
        with contextlib.ExitStack() as stack:
            terminals = [stack.enter_context(self.login(user)) for user in users]
            for terminal in terminals:
                terminal.expect(r"[$%>#] ", 90)
            yield terminals

    # -- the kernel's audit records -------------------------------------------------

    def denials(self, after: str = "") -> list[str]:
        """Return what SELinux and AppArmor refused, or would have, as the kernel has it."""
        found = self.journal("_TRANSPORT=audit", after=after)
        texts = [entry["MESSAGE"] for entry in found]
        return [
            text
            for text in texts
            if "avc:  denied" in text
            or 'apparmor="DENIED"' in text
            or 'apparmor="ALLOWED"' in text
            or "SELINUX_ERR" in text
        ]


class SerialLine(Terminal):
    """The other end of a machine's serial line."""

    def __init__(self, path: Path) -> None:
        line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        line.connect(str(path))
        self._master = line.detach()
        self.output = b""
        self._seen = 0

    def close(self) -> None:
        self.hang_up()


def _make_disk(cache: Path, lower: list[Path]) -> Path:
    """Return a disk image of these layers, labelled for SELinux, the module of recuse loaded."""
    digest = hashlib.sha256("\0".join([Path(__file__).read_text(), *map(str, lower)]).encode())
    disk = cache / f"machine-{digest.hexdigest()[:16]}"
    with open(cache / "machine.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not disk.exists():
            with tempfile.TemporaryDirectory(prefix="disk-", dir=cache) as made:
                for part in ("upper", "work", "root"):
                    Path(made, part).mkdir()
                    Path(made, part).chmod(0o755)
                overlay = f"lowerdir={':'.join(map(str, lower))}"
                overlay += f",upperdir={made}/upper,workdir={made}/work"
                script = f"""
                    set -eu
                    mount -t overlay overlay -o "{overlay}" {made}/root
                    truncate --size 4G {made}/disk
                    mkfs.ext4 -q -d {made}/root {made}/disk
                    umount {made}/root
                    mount -o loop {made}/disk {made}/root
                    mount -t proc proc {made}/root/proc
                    chroot {made}/root setfiles -F -e /proc \
                        /etc/selinux/default/contexts/files/file_contexts /
                    umount {made}/root/proc {made}/root
                """
                _output(["unshare", "--mount", "--propagation", "private", "sh", "-c", script])
                os.rename(f"{made}/disk", disk)
            _prune(cache, "machine", keep=2)
    return disk
