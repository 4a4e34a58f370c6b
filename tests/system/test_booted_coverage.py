"""Logins as sshd, PAM, logind and wtmp tell of them, held against the ledger of a real host."""

from __future__ import annotations

import json
import re
from typing import Any, Dict

from accounts import event, verify, watching
from host import CLIENT, Host

SERVICE = """
[Service]
ExecStart=
ExecStart=/usr/bin/recuse doctor --coverage --settle 0
"""


def count(host: Host) -> Dict[str, Any]:
    """Count when no login is under way."""
    result = host.run("recuse", "doctor", "--coverage", "--settle", "0", "--json")
    found: Dict[str, Any] = json.loads(result.stdout)
    assert result.returncode == (11 if found["findings"] else 0), result.stderr
    return found


def bypass(host: Host) -> None:
    """Take recuse out of sshd's logins, as somebody with root does who wants no trace."""
    shared = host.read("/etc/pam.d/common-session")
    without = "".join(line for line in shared.splitlines(True) if "pam_recuse" not in line)
    assert without != shared
    sshd = host.read("/etc/pam.d/sshd")
    host.write("/etc/pam.d/sshd", sshd.replace("@include common-session\n", without))
    switch = host.read("/etc/nsswitch.conf")
    host.write("/etc/nsswitch.conf", re.sub(r"(passwd:\s*)recuse ", r"\1", switch))


def test_logins_of_every_kind_reconcile(host: Host) -> None:
    with watching(host, sessions=6, logins=7):
        host.ssh("alice", "true")
        host.ssh("dave", "true", source="2001:db8::7")
        with host.login("bob") as terminal:
            terminal.expect("[%$#>] ")
            terminal.line("exit 0")
            terminal.wait()
        host.ssh("alice", "sudo -u carol true; sudo -i true")
        host.run("su", "-", "dave", "-c", "true", check=True)
    host.ssh("erin", "true")  # refused
    host.ssh("nolan", "true", tty=True)
    found = count(host)
    assert (found["findings"], found["under_way"], found["before"]) == ([], 0, 0)
    assert found["matched"] == found["sightings"] >= 8


def test_agent_away_is_no_difference(host: Host) -> None:
    host.run("systemctl", "stop", "recuse-agent.socket", "recuse-control.socket", check=True)
    host.run("systemctl", "stop", "recuse-agent.service", check=True)
    assert host.ssh("alice", "true", timeout_seconds=60).returncode == 0
    host.run("systemctl", "start", "recuse-agent.socket", "recuse-control.socket", check=True)
    host.run("systemctl", "start", "recuse-agent.service", check=True)
    assert count(host)["findings"] == []


def test_login_past_recuse_is_found_signed_and_told_once(host: Host) -> None:
    before = host.read("/etc/pam.d/sshd"), host.read("/etc/nsswitch.conf")
    cursor = host.cursor()
    bypass(host)
    assert host.ssh("alice", "true").returncode == 0
    host.write("/etc/pam.d/sshd", before[0])
    host.write("/etc/nsswitch.conf", before[1])
    found = count(host)
    assert found["new"] == 1 and len(found["findings"]) == 1, found
    finding = found["findings"][0]
    assert (finding["what"], finding["user"]) == ("missing-login", "alice")
    assert finding["source"].startswith(CLIENT) and {"sshd", "pam"} <= set(finding["witnesses"])
    told = host.wait_journal(event("finding"), after=cursor)
    assert told[0]["PRIORITY"] == "2" and told[0]["RECUSE_USER"] == "alice"
    shown = host.run("recuse", "doctor", "--coverage", "--settle", "0")
    assert shown.returncode == 11 and "alice by sshd from " + CLIENT in shown.stdout
    assert count(host)["new"] == 0
    assert len(host.journal(event("finding"), after=cursor)) == 1
    verify(host)
    told_by_verify = host.run("recuse", "verify").stdout
    assert "a login has no entry in the ledger: alice by sshd" in told_by_verify


def test_service_finds_it_without_being_root(host: Host) -> None:
    before = host.read("/etc/pam.d/sshd"), host.read("/etc/nsswitch.conf")
    host.write("/etc/systemd/system/recuse-coverage.service.d/now.conf", SERVICE)
    host.run("systemctl", "daemon-reload", check=True)
    cursor = host.cursor()
    bypass(host)
    with host.login("bob") as terminal:
        terminal.expect("[%$#>] ")
        terminal.line("exit 0")
        terminal.wait()
    host.write("/etc/pam.d/sshd", before[0])
    host.write("/etc/nsswitch.conf", before[1])
    host.run("systemctl", "start", "recuse-coverage.service", check=True)
    told = host.wait_journal(event("finding"), after=cursor)
    assert [one["RECUSE_USER"] for one in told] == ["bob"]
    assert "wtmp" in told[0]["RECUSE_WITNESSES"] and told[0]["RECUSE_TTY"].startswith("pts/")
    host.run("systemctl", "start", "recuse-coverage.service", check=True)
    assert len(host.journal(event("finding"), after=cursor)) == 1
    assert host.run("systemctl", "is-enabled", "recuse-coverage.timer").stdout.strip() == "enabled"


def test_only_root_and_the_service_may_enter_findings(host: Host) -> None:
    asked = host.run(
        "setpriv", "--reuid=alice", "--regid=alice", "--clear-groups",
        "recuse", "doctor", "--coverage",
    )  # fmt: skip
    assert asked.returncode == 7, asked.stderr


def test_report_says_what_was_exempt(host: Host) -> None:
    with watching(host):
        host.ssh("dave", "true")
    told = host.json("recuse", "report", "--json")
    assert isinstance(told, dict)
    exempt = {one["name"]: one["exempt"] for one in told["by"]["rule"]}
    assert exempt["dave-is-exempt"] >= 1
    assert any(one["rule"] == "dave-is-exempt" for one in told["expiring"])
    host.run("recuse", "report", "--works-council", "--html", "/root/report.html", check=True)
    page = host.read("/root/report.html")
    assert "dave-is-exempt" in page and "privacy@example.org" in page and "alice" not in page
    assert host.run("recuse report | head -n 1").stdout.endswith(" in all\n")
