"""Try to trace, and to take descriptors from, every new process of the user that is not theirs."""

import contextlib
import os
import signal

from lib import call

NAMES = ("sshd", "recuse-shell")
PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH, WALL = 0x4206, 0x4207, 17, 0x40000000


def name_of(pid: int) -> str:
    with open(f"/proc/{pid}/comm") as comm:
        return comm.read().strip()


def trace(pid: int) -> None:
    call("ptrace", PTRACE_SEIZE, pid, 0, 0)
    call("ptrace", PTRACE_INTERRUPT, pid, 0, 0)
    os.waitpid(pid, WALL)
    call("ptrace", PTRACE_DETACH, pid, 0, 0)


def take_descriptor(pid: int) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        os.close(call("pidfd_getfd", pidfd, 0, 0))
    finally:
        os.close(pidfd)


def read_memory(pid: int) -> None:
    os.close(os.open(f"/proc/{pid}/mem", os.O_RDWR))


found = open("hunted", "w", buffering=1)
signal.signal(signal.SIGINT, lambda *_: os._exit(0))
seen = {one for one in os.listdir("/proc") if one.isdigit()}
print("hunting", flush=True)
with open(os.devnull, "r+") as null:
    os.dup2(null.fileno(), 1)
while True:
    for pid in map(int, {one for one in os.listdir("/proc") if one.isdigit()} - seen):
        for hunt in (trace, take_descriptor, read_memory):
            with contextlib.suppress(OSError):
                name = name_of(pid)
                if name in NAMES:
                    hunt(pid)
                    if name_of(pid) == name:  # else it is the user's own shell by now
                        print("WORKED:", hunt.__name__, name, file=found)
