"""Try to trace, and to take descriptors from, every new process of the user that is not theirs."""

import contextlib
import os
import signal

from lib import call


def read_memory(pid: str) -> None:
    os.close(os.open(f"/proc/{pid}/mem", os.O_RDWR))


found = open("hunted", "w", buffering=1)
signal.signal(signal.SIGINT, lambda *_: os._exit(0))
seen = {one for one in os.listdir("/proc") if one.isdigit()}
print("hunting", flush=True)
with open(os.devnull, "r+") as null:
    os.dup2(null.fileno(), 1)
while True:
    for pid in {one for one in os.listdir("/proc") if one.isdigit()} - seen:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/comm") as comm:
            name = comm.read().strip()
            if name not in ("sshd", "recuse-shell"):
                continue
            pidfd = os.pidfd_open(int(pid))
            for how, *arguments in (
                (call, "ptrace", 0x4206, int(pid), 0, 0),
                (call, "pidfd_getfd", pidfd, 0, 0),
                (read_memory, pid),
            ):
                with contextlib.suppress(OSError):
                    how(*arguments)
                    print("WORKED:", arguments, name, file=found)
            os.close(pidfd)
