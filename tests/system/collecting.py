"""A collector on a host, which the host ships to."""

from __future__ import annotations

import time

from host import Host, HostError

STORE = "/var/lib/recuse-collector"
URL = "https://localhost:8443"
CONFIG = f"""
[central]
url = "{URL}"
ca = "/etc/recuse/collector.crt"
"""


def stored(host: Host) -> int:
    """Return how many entries of the host the collector holds."""
    hosts = host.json("recuse-collector", "hosts", "--json")
    assert isinstance(hosts, list)
    return sum(int(ledger["entries"]) for row in hosts for ledger in row["ledgers"])


def size(host: Host) -> int:
    return int(host.read("/var/lib/recuse/ledger/checkpoint").split("\n")[1])


def await_shipped(host: Host, seconds: float = 60) -> None:
    """Wait until the collector has every signed entry, and the spool nothing to ship.

    Asks again and again, each time by running a command: there is no event to see from here.
    """
    deadline = time.monotonic() + seconds
    host.run("recuse", "sync", check=True)
    while stored(host) != size(host) or any(host.path("/var/spool/recuse/out").iterdir()):
        if time.monotonic() > deadline:
            log = host.run("journalctl", "--no-pager", "-n", "30", "-u", "recuse-ship").stdout
            raise HostError(f"{stored(host)} of {size(host)} entries are stored\n{log}")


def enrol(host: Host) -> None:
    """Start a collector and have the host ship to it, as an administrator does."""
    host.run("recuse-collector", "init", "--name", "localhost", check=True)
    host.run("systemctl", "start", "recuse-collector", check=True)
    host.write("/etc/recuse/recuse.toml", CONFIG)
    token = host.run("recuse-collector", "token", check=True).stdout.strip()
    command = ("recuse", "enroll", "--url", URL, "--ca", "/etc/recuse/collector.crt")
    wrong = host.run(*command, "--token", "A" * len(token))
    assert wrong.returncode == 9, wrong.stdout + wrong.stderr
    host.run(*command, "--token", token, check=True)
    host.run("systemctl", "restart", "recuse-agent", "recuse-ship", check=True)
