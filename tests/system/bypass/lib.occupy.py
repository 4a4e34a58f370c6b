"""Make 300 connections to the agent; say something on each first, and then read nothing."""

import contextlib
import signal
import socket
import sys

line = {"idle": b"", "deaf": b'{"verb":"status"}\n' * 3000, "long": b"[" * 200000}[sys.argv[1]]
kept = []
for _ in range(300):
    one = socket.socket(socket.AF_UNIX)
    one.setblocking(False)
    with contextlib.suppress(OSError):
        one.connect("/run/recuse/control.sock")
        one.send(line)
    kept.append(one)
print("held", flush=True)
signal.pause()
