"""Waits for a file of a host to change, and kills: no command would come in time for that."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import struct
import time

from host import Host, HostError

# linux/inotify.h
MODIFY, MOVED_TO, CREATE, DELETE = 0x2, 0x80, 0x100, 0x200
_HEAD = struct.Struct("=iIII")
_libc = ctypes.CDLL(None, use_errno=True)


class Trap:
    """Hears of changes to the files of a directory, from when it is made."""

    def __init__(self, host: Host, directory: str, changes: int) -> None:
        self._fd = _libc.inotify_init1(os.O_CLOEXEC)
        path = bytes(host.path(directory))
        if self._fd < 0 or _libc.inotify_add_watch(self._fd, path, changes) < 0:
            raise HostError(f"{directory}: {os.strerror(ctypes.get_errno())}")
        self._heard = 0

    def wait(self, count: int, seconds: float = 60) -> None:
        """Wait for so many more changes. Raises: HostError if they do not come."""
        deadline = time.monotonic() + seconds
        while self._heard < count:
            left = max(deadline - time.monotonic(), 0)
            if not select.select([self._fd], [], [], left)[0]:
                raise HostError(f"{self._heard} of {count} changes")
            events = os.read(self._fd, 65536)
            while events:
                self._heard += 1
                events = events[_HEAD.size + _HEAD.unpack_from(events)[3] :]
        self._heard = 0

    def close(self) -> None:
        os.close(self._fd)


def kill(pid: int, name: str) -> bool:
    """Kill a process of this machine's numbering, if it is there and is what it is taken for."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        with open(f"/proc/{pid}/comm") as comm:
            if comm.read().strip() != name:
                return False
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        return True
    except OSError:
        return False
    finally:
        os.close(pidfd)
