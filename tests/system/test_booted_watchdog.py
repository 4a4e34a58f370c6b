"""An agent that hangs: systemd starts it again, and nothing that it missed is missing.

Ends are told apart by user and exit status, so each is asserted by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from accounts import enable, event, export, rows, verify
from host import Host

UNIT = "recuse-agent.service"

#: Longer than a login beside an agent that does not answer takes to begin: pam_recuse's question
#: and the shell's wait two seconds each, and the last sign of life may be half of this old.
WATCHDOG = """
[Service]
WatchdogSec=12s
"""


@pytest.fixture
def own() -> Iterator[Host]:
    with Host() as host:
        host.write(f"/etc/systemd/system/{UNIT}.d/watchdog.conf", WATCHDOG)
        host.run("systemctl", "daemon-reload", check=True)
        enable(host)
        host.run("systemctl", "restart", UNIT, check=True)
        yield host


def main_pid(host: Host) -> str:
    return host.run("systemctl", "show", "-P", "MainPID", UNIT, check=True).stdout.strip()


def test_agent_that_hangs_is_started_again_and_misses_nothing(own: Host) -> None:
    host = own
    with host.login("alice") as goes_on, host.login("bob") as ends, host.login("dave") as exempt:
        for terminal in (goes_on, ends, exempt):
            terminal.expect(r"[$%>#] ")
        cursor = host.cursor()
        pid = main_pid(host)
        assert pid != "0"  # that would be the process group of kill itself
        host.run("kill", "-STOP", pid, check=True)
        during = host.ssh("alice", "echo begun-in-the-hang; exit 3")
        assert (during.returncode, during.stdout) == (3, b"begun-in-the-hang\n")
        assert main_pid(host) == pid  # or this was no login in the hang
        ends.run("echo shown-in-the-hang")
        ends.line("exit 4")
        assert ends.wait() == 4
        goes_on.run("echo typed-in-the-hang")
        host.wait_journal(event("started"), after=cursor)
        assert main_pid(host) not in ("0", pid)
        assert host.journal(f"UNIT={UNIT}", "UNIT_RESULT=watchdog", after=cursor)
        adopted = host.wait_journal(event("adopted"), after=cursor)
        goes_on.run("echo typed-after-it")
        goes_on.line("exit 5")
        exempt.line("exit 6")
        assert (goes_on.wait(), exempt.wait()) == (5, 6)
        # An end of what was begun without the agent can be told before these.
        closed = event("closed")
        host.wait_journal(closed, RECUSE_USER="alice", RECUSE_EXIT_STATUS="5", after=cursor)
        host.wait_journal(closed, RECUSE_USER="dave", after=cursor)
        host.wait_journal(event("logout"), count=4, after=cursor)
    found = {(row["user"], row["exit_status"]): row for row in rows(host)}
    outcomes = {user_status: row["outcome"] for user_status, row in found.items()}
    assert outcomes == {
        ("alice", 3): "recorded",
        ("bob", 4): "recorded",
        ("alice", 5): "recorded",
        ("dave", None): "exempt",
    }
    assert [one["RECUSE_SESSION"] for one in adopted] == [found["alice", 3]["session"]]
    assert "begun-in-the-hang" in export(host, found["alice", 3]["session"])
    assert "shown-in-the-hang" in export(host, found["bob", 4]["session"])
    whole = export(host, found["alice", 5]["session"])
    assert "typed-in-the-hang" in whole and "typed-after-it" in whole
    counted = host.run("recuse", "doctor", "--coverage", "--settle", "0", "--json")
    assert json.loads(counted.stdout)["findings"] == []
    verify(host)
