"""Open each new terminal of the user, first of all or as soon as it can be opened again."""

import contextlib
import os
import sys
import time

name, when = sys.argv[1:]
seen = set(os.listdir("/dev/pts"))
until = time.monotonic() + 10
refused = set()
kept = []
while time.monotonic() < until:
    for number in set(os.listdir("/dev/pts")) - seen:
        with contextlib.suppress(OSError):
            found = os.stat("/dev/pts/" + number)
            if when == "first" and found.st_uid != os.getuid():
                continue
            if when == "afterwards" and number not in refused:
                if (found.st_uid, found.st_mode & 0o777) == (0, 0o600):
                    refused.add(number)
                continue
            fd = os.open("/dev/pts/" + number, os.O_RDWR | os.O_NOCTTY)
            os.write(fd, b"ACTED-" + name.encode() + b"\r\n")
            kept.append(fd)
            seen.add(number)
            open("/tmp/grabbed", "w").close()
