"""A small disk of a host's own, for what recuse keeps: to be filled, broken and cut off."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from host import Host
from writelog import WriteLog

UNITS = (
    "recuse-agent.socket recuse-control.socket recuse-agent.service recuse-ship.service "
    "recuse-notify.service"
)
PLACES = ("/var/lib/recuse", "/var/spool/recuse", "/var/lib/recuse-ship", "/var/lib/recuse-central")
AT = "/mnt/disk"


class Disk:
    """An ext4 file system in a file, mounted in a host below both of recuse's directories."""

    def __init__(self, host: Host, image: Path) -> None:
        self.host = host
        self.image = image
        self.log: WriteLog | None = None
        self.device = ""

    @classmethod
    def make(cls, host: Host, image: Path, megabytes: int, logged: bool = False) -> Disk:
        """Make a disk with all that recuse has on the host until now, and mount it."""
        with open(image, "wb") as file:
            file.truncate(megabytes << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(image)], check=True)
        disk = cls(host, image)
        disk.log = WriteLog(image) if logged else None
        host.run(f"systemctl stop {UNITS}", check=True)
        disk._attach()
        host.run(f"cp -a --parents {' '.join(PLACES)} {AT}", check=True)
        host.run("sync", "-f", AT, check=True)  # what was there before is not what is tried
        disk._bind()
        return disk

    def mount(self) -> None:
        """Mount it, and have recuse start on it."""
        self.host.run(f"systemctl stop {UNITS}", check=True)
        self._attach()
        self._bind()

    def _attach(self) -> None:
        with self.log.served() if self.log else contextlib.nullcontext():
            found = subprocess.run(
                ["losetup", "--find", "--show", str(self.image)],
                check=True, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
        loop = found.stdout.strip()
        self.device = Path(loop).name
        number = os.stat(loop).st_rdev
        try:
            self.host.run(
                f"mkdir -p {AT}; rm -f /dev/disk0; "
                f"mknod /dev/disk0 b {os.major(number)} {os.minor(number)} && "
                f"mount -o errors=remount-ro /dev/disk0 {AT}",
                check=True,
            )
        finally:
            # From now on it goes with its last mount, however the host ends.
            subprocess.run(["losetup", "--detach", loop], check=True)

    def _bind(self) -> None:
        binds = "".join(f"mount --bind {AT}{place} {place}\n" for place in PLACES)
        self.host.run(f"set -e\n{binds}systemctl start {UNITS}", check=True)

    def unmount(self) -> None:
        """Have recuse stop, and take the disk away."""
        self.host.run(f"systemctl stop {UNITS}; umount -l {' '.join(PLACES)} {AT}", check=True)

    def fail(self) -> None:
        """Let the kernel find an error of the file system: it is read-only from then on."""
        Path("/sys/fs/ext4", self.device, "trigger_fs_error").write_text("a test")

    def become(self, image: Path) -> None:
        """Have the file system of another image, from the next mount on."""
        if self.log is not None:
            self.log.close()
            self.log = None
        self.image = image

    def check(self) -> None:
        """Repair the file system while it is not mounted."""
        done = subprocess.run(["e2fsck", "-f", "-p", str(self.image)], stdout=subprocess.DEVNULL)
        assert done.returncode <= 1, done  # 1: errors were corrected


@contextlib.contextmanager
def disk_of(
    host: Host, image: Path, megabytes: int = 192, *, logged: bool = False
) -> Iterator[Disk]:
    """Give a host a disk for the time of the block, one that remembers its writes if `logged`."""
    disk = Disk.make(host, image, megabytes, logged)
    try:
        yield disk
    finally:
        disk.unmount()
        image.unlink()
