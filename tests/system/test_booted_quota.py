"""Limits of a user, on a host where several of their sessions flood at once."""

from __future__ import annotations

import subprocess
from typing import Iterator

import pytest
from accounts import event, export, verify, watching
from host import Host

CONFIG = "/etc/recuse/recuse.toml"
LIVE = 24 << 20
LIMITS = '\n[session]\nuser_live = "24 MiB"\non_user_limit = "gap"\n'
FLOOD = "base64 -w 100 /dev/urandom"


@pytest.fixture
def limited(host: Host) -> Iterator[Host]:
    before = host.read(CONFIG)
    host.write(CONFIG, LIMITS)
    host.run("systemctl", "reload", "recuse-agent.service", check=True)
    yield host
    host.write(CONFIG, before)
    host.run("systemctl", "reload", "recuse-agent.service", check=True)


def spooled(host: Host) -> int:
    return sum(one.stat().st_size for one in host.path("/var/spool/recuse/live").iterdir())


def test_flood_of_one_user_leaves_the_spool_and_others_alone(limited: Host) -> None:
    host, cursor = limited, limited.cursor()
    command, null = host.ssh_command("alice", FLOOD, tty=True), subprocess.DEVNULL
    floods = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=null, stderr=null)
        for _ in range(4)
    ]
    try:
        (told,) = host.wait_journal(event("user-limit"), after=cursor)
        assert told["RECUSE_USER"] == "alice"
        assert spooled(host) <= LIVE + (1 << 20)
        with watching(host) as seen:
            done = host.ssh("bob", "seq 20000; echo end", tty=True)
        assert done.stdout.endswith(b"end\r\n")
        assert seen.session["outcome"] == "recorded"
        assert "20000\nend" in export(host, str(seen.session["session"])).replace("\r", "")
        host.run("systemctl", "restart", "recuse-agent.service", check=True)
        assert host.ssh("bob", "echo again").stdout == b"again\n"
        assert spooled(host) <= LIVE + (1 << 20)
    finally:
        for one in floods:
            one.kill()
            one.communicate()  # closes its input
    verify(host)
