"""A file system whose server falls silent while a process has a file of it open.

Run by test_host.py in name spaces of its own; prints what is found then of that process.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import pty
import signal
import struct
import subprocess
import sys

from recuse.host import Held, Kernel

LOOKUP, GETATTR, OPEN, INIT = 1, 3, 14, 26  # include/uapi/linux/fuse.h
DIRECTORY, FILE = (1, 0o040755), (2, 0o100666)  # inode, mode


def attributes(inode: int, mode: int) -> bytes:
    return struct.pack("<6Q10I", inode, 0, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def serve(device: int) -> None:
    """Answer, and keep none of it in anybody's cache; but once a file is open, not how it is."""
    opened = False
    while True:
        request = os.read(device, 1 << 17)
        _, opcode, unique, inode = struct.unpack_from("<IIQQ", request)
        body, error = b"", 0
        if opcode == INIT:
            body = struct.pack("<4I2H8I", 7, 31, 0, 0, 1, 1, 65536, *[0] * 7) + bytes(8)
        elif opcode == LOOKUP:
            body = struct.pack("<4Q2I", FILE[0], 0, 0, 0, 0, 0) + attributes(*FILE)
        elif opcode == GETATTR and not opened:
            body = struct.pack("<Q2I", 0, 0, 0) + attributes(*(DIRECTORY, FILE)[inode - 1])
        elif opcode == GETATTR:
            continue
        elif opcode == OPEN:
            body, opened = struct.pack("<QII", 0, 0, 0), True
        else:
            error = -errno.ENOSYS
        os.write(device, struct.pack("<IiQ", 16 + len(body), error, unique) + body)


def main(directory: str) -> None:
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"silent", os.fsencode(directory), b"fuse.silent", 0, options.encode()):
        sys.exit(os.strerror(ctypes.get_errno()))
    if not (server := os.fork()):
        signal.alarm(60)  # should somebody wait for it, whom nothing else would free
        serve(device)
    os.close(device)
    file = os.open(f"{directory}/file", os.O_RDWR)  # whose server says nothing from here on
    master, slave = pty.openpty()
    rdev, lies_on = os.fstat(slave).st_rdev, os.fstat(slave).st_dev
    kernel, pipe = Kernel(), subprocess.PIPE
    holder = subprocess.Popen(["cat"], stdin=pipe, stdout=file, stderr=file, pass_fds=[slave])
    held = kernel.holders([Held(rdev, 0, frozenset({os.getpid()}), instance=lies_on)])
    told = kernel.tell_terminal(holder.pid, kernel.stat(holder.pid).start, b"x")
    writes = kernel.writes_to(holder.pid, rdev, 0)
    waited = os.waitpid(server, os.WNOHANG)[0] == server
    found = held == [(f"{holder.pid}:cat",)]
    print(json.dumps({"holders": found, "told": told, "writes": writes, "waited": waited}))
    os.kill(server, signal.SIGKILL)  # and the kernel asks nobody any more
    holder.communicate()


if __name__ == "__main__":
    main(sys.argv[1])
