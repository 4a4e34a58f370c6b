"""Libraries of the tests for programs of a host, and the clock that one of them shows the agent."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from host import Host

HERE = Path(__file__).resolve().parent
CLOCK = "/usr/local/lib/clock.so"
SHIFT = "/run/clock-shift"
UNIT = "recuse-agent.service"


def build(host: Host, source: str, to: str, *flags: str) -> None:
    """Compile a shared library of the tests into a host."""
    made = host.path(to)
    words = ["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(made)]
    subprocess.run([*words, str(HERE / source), *flags], check=True)


class Clock:
    """The wall clock of an agent, and of nothing else: the host has that of the machine."""

    def __init__(self, host: Host) -> None:
        self.host = host
        build(host, "clock.c", CLOCK)
        self.step(0)
        host.write(
            f"/run/systemd/system/{UNIT}.d/clock.conf",
            f"[Service]\nEnvironment=LD_PRELOAD={CLOCK} CLOCK_FILE={SHIFT}\n",
        )
        host.run("systemctl", "daemon-reload", check=True)
        self.restart()

    def step(self, seconds: int) -> None:
        """Have the agent take the time for that much later than it is, from now on."""
        self.host.write(f"{SHIFT}.new", str(seconds))
        os.rename(self.host.path(f"{SHIFT}.new"), self.host.path(SHIFT))

    def restart(self) -> None:
        """Have the agent know of its clock's steps from its ledger alone."""
        self.host.run("systemctl", "restart", UNIT, check=True)
