"""Open each new terminal of the user as soon as it is there, and print to it."""

import contextlib
import ctypes
import os
import sys

IN_ATTRIB, IN_CREATE = 0x4, 0x100
libc = ctypes.CDLL(None, use_errno=True)
events = libc.inotify_init1(0)
assert libc.inotify_add_watch(events, b"/dev/pts", IN_ATTRIB | IN_CREATE) >= 0
seen = set(os.listdir("/dev/pts"))
print("watching", flush=True)
with open(os.devnull, "r+") as null:
    os.dup2(null.fileno(), 1)
while os.read(events, 4096):
    for number in set(os.listdir("/dev/pts")) - seen:
        with contextlib.suppress(OSError):
            if os.stat("/dev/pts/" + number).st_uid == os.getuid():
                fd = os.open("/dev/pts/" + number, os.O_RDWR | os.O_NOCTTY)
                os.write(fd, b"ACTED-" + sys.argv[1].encode() + b"\r\n")
                seen.add(number)
                with open("grabbed", "w") as told:
                    told.write("x\n")
