"""Approvals through a collector over TLS, by approvers who have no account on the host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Dict, Tuple

import pytest
from accounts import RULES, enable, event, verify, watching
from host import TOP, Host
from office import APPROVAL, NAMESPACES, REASONS

PROGRAM = TOP / "packaging/bin/recuse"
URL = "https://localhost:8443"
CONFIG = f"""
[central]
url = "{URL}"
ca = "/etc/recuse/collector.crt"
"""


class Elsewhere:
    """Approvers with nothing but their keys, the program and the collector's certificate."""

    def __init__(self, host: Host, home: Path) -> None:
        self._host, self._home = host, home
        self.signers = home / "approvers"
        access = ""
        allowed = ""
        for name in ("frank", "heidi", "mallory"):
            key = home / name
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True, timeout=60
            )
            public = " ".join(key.with_suffix(".pub").read_text().split()[:2])
            if name != "mallory":
                allowed += f"{name}@example.org {NAMESPACES} {public}\n"
                access += f'{name}@example.org namespaces="recuse-mailbox@local" {public}\n'
        self.signers.write_text(allowed)
        host.write("/etc/recuse/approvers", allowed)
        host.write("/etc/recuse/collector-approvers", access)

    def run(self, name: str, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run recuse as an approver: in the host's network, but as somebody whom it does not know.

        The host is on no network but its own; user, files and program are not the host's.
        """
        ca = self._host.path("/etc/recuse/collector.crt")
        at = ["--collector", URL, "--ca", str(ca)]
        lists = words[0] in ("requests", "grants")
        key = ["--mailbox-key" if lists else "--key", str(self._home / name)]
        return subprocess.run(
            [*self._host.network(sys.executable), str(PROGRAM), *words, *at, *key],
            check=False, capture_output=True, text=True, timeout=60,
            env={**os.environ, "PYTHONPATH": str(TOP / "agent"), "HOME": str(self._home)},
        )  # fmt: skip

    def must(self, name: str, *words: str) -> Any:
        ran = self.run(name, *words, "--json")
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tuple[Host, Elsewhere]]:
    with Host() as host:
        host.run("recuse-collector", "init", "--name", "localhost", check=True)
        host.run("systemctl", "start", "recuse-collector", check=True)
        host.write("/etc/recuse/recuse.toml", CONFIG)
        token = host.run("recuse-collector", "token", check=True).stdout.strip()
        enrol = ("recuse", "enroll", "--url", URL, "--ca", "/etc/recuse/collector.crt")
        host.run(*enrol, "--token", token, check=True)
        elsewhere = Elsewhere(host, tmp_path_factory.mktemp("elsewhere"))
        rules = RULES.replace("handles patient data", "maintenance")
        host.write("/etc/recuse/policy.d/10-test.toml", REASONS + rules)  # that the next one needs
        host.write("/etc/recuse/approval.d/10-test.toml", APPROVAL)
        host.run("recuse", "policy", "check", check=True)
        host.run("systemctl", "restart", "recuse-agent", "recuse-ship", check=True)
        enable(host, REASONS + rules)
        yield host, elsewhere


def ask(host: Host, *more: str) -> Dict[str, Any]:
    """Have alice ask, in a session of hers."""
    ran = host.ssh(
        "alice", "recuse request --json --for 1h --why 'index rebuild' --reason maintenance"
        " --ticket CHG-7 " + " ".join(more),
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    told: Dict[str, Any] = json.loads(ran.stdout)
    return told


def arrives(elsewhere: Elsewhere, grant: str) -> Dict[str, Any]:
    """Wait until a request has come to the collector, by asking it as an approver would."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for one in elsewhere.must("frank", "requests"):
            if one["grant"] == grant:
                found: Dict[str, Any] = one
                return found
    raise AssertionError(f"{grant} did not come to the collector")


def granted(host: Host, elsewhere: Elsewhere, *more: str) -> str:
    grant: str = ask(host, *more)["grant"]
    arrives(elsewhere, grant)
    assert "pending" in elsewhere.must("frank", "approve", grant, "--yes")["words"]
    assert "granted" in elsewhere.must("heidi", "approve", grant, "--yes")["words"]
    return grant


def test_two_approve_from_elsewhere_and_one_login_is_exempt(
    office: Tuple[Host, Elsewhere], tmp_path: Path
) -> None:
    host, elsewhere = office
    asked = ask(host)
    shown = arrives(elsewhere, asked["grant"])
    assert (shown["request"], shown["missing"]) == (asked["request"], 2)
    first = elsewhere.run("frank", "approve", asked["grant"], "--yes")
    assert "1 session of alice" in first.stdout and "says: " in first.stdout, first.stderr
    twice = elsewhere.run("frank", "approve", asked["grant"], "--yes")
    assert twice.returncode == 0  # the very same bytes: known, and taken
    stranger = elsewhere.run("mallory", "approve", asked["grant"], "--yes")
    assert stranger.returncode == 7, stranger.stderr
    second = elsewhere.must("heidi", "approve", asked["grant"], "--yes")
    assert second["taken"] and "granted" in second["words"]
    with watching(host) as seen:
        assert host.ssh("alice", "echo done").stdout == b"done\n"
    assert (seen.session["outcome"], seen.session["grant"]) == ("exempt", asked["grant"])
    with watching(host) as again:
        host.ssh("alice", "echo again")
    assert again.session["outcome"] == "recorded"
    verify(host)

    # An auditor has the collector's store and the approvers' file, and nothing of the host.
    host.run("recuse", "sync", check=True)
    deadline = time.monotonic() + 60
    listed = ("recuse", "sessions", "--dir", "/var/lib/recuse-collector", "--json")
    while seen.session["session"] not in host.run(*listed).stdout:
        assert time.monotonic() < deadline, "the stub did not come to the collector"
    host.run("systemctl", "stop", "recuse-collector", check=True)
    copy = host.copy_out("/var/lib/recuse-collector", tmp_path)
    key = host.copy_out("/var/lib/recuse/host.pub", tmp_path)
    host.run("systemctl", "start", "recuse-collector", check=True)
    (copy / "store.key").unlink()
    words = ["verify", "--dir", str(copy), "--key", str(key), "--approvers"]
    for signers, code in ((elsewhere.signers, 0), (tmp_path / "others", 10)):
        if code:
            line = elsewhere.signers.read_text().replace("frank@", "eve@").replace("heidi@", "eva@")
            signers.write_text(line)
        ran = subprocess.run(
            [sys.executable, str(PROGRAM), *words, str(signers)], check=False,
            capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(TOP / "agent")},
        )  # fmt: skip
        assert ran.returncode == code, ran.stdout + ran.stderr


def test_revoking_from_elsewhere_ends_the_session_at_once(
    office: Tuple[Host, Elsewhere],
) -> None:
    host, elsewhere = office
    grant = granted(host, elsewhere)
    with watching(host) as seen, host.login("alice") as terminal:
        terminal.run("echo started")
        ran = elsewhere.run("heidi", "revoke", grant, "--yes", "--why", "enough")
        assert ran.returncode == 0 and f"take back grant {grant}" in ran.stdout, ran.stderr
        assert "revoked" in ran.stdout
        terminal.wait()
    assert "grant-revoked" in seen.session["flags"]
    told = host.wait_journal(event("revocation"), RECUSE_GRANT=grant)[0]
    closed = host.wait_journal(event("closed"), RECUSE_SESSION=seen.session["session"])[0]
    apart = int(closed["__REALTIME_TIMESTAMP"]) - int(told["__REALTIME_TIMESTAMP"])
    assert apart < 1_000_000
    verify(host)


def test_revoking_from_elsewhere_records_a_supervised_session_at_once(
    office: Tuple[Host, Elsewhere],
) -> None:
    host, elsewhere = office
    grant = granted(host, elsewhere, "--supervised")
    with watching(host) as seen, host.login("alice") as terminal:
        terminal.run("echo in-''private")
        ran = elsewhere.run("heidi", "revoke", grant, "--yes", "--why", "enough")
        assert ran.returncode == 0 and "revoked" in ran.stdout, ran.stderr
        terminal.expect("no longer exempt, recorded from now on: .* was revoked by heidi@")
        terminal.run("echo on-''record")
        terminal.line("exit")
        assert terminal.wait() == 0
    session = seen.session["session"]
    assert (seen.session["outcome"], seen.session["grant"]) == ("partial", grant)
    told = host.wait_journal(event("revocation"), RECUSE_GRANT=grant)[0]
    resumed = host.wait_journal(event("resumed"), RECUSE_SESSION=session)[0]  # the relay's word
    apart = int(resumed["__REALTIME_TIMESTAMP"]) - int(told["__REALTIME_TIMESTAMP"])
    assert apart < 1_000_000
    host.run("recuse", "sync", check=True)
    stored = ("recuse", "export", "--format", "text", "--dir", "/var/lib/recuse-collector", session)
    deadline = time.monotonic() + 60
    while "on-record" not in (kept := host.run(*stored)).stdout:  # it is on its way
        assert time.monotonic() < deadline, kept.stdout + kept.stderr
    assert "in-private" not in kept.stdout
    verify(host)


def test_broken_glass_is_reviewed_from_elsewhere(office: Tuple[Host, Elsewhere]) -> None:
    host, elsewhere = office
    ran = host.ssh("carol", "recuse break-glass --json --why 'it burns'")
    owed = json.loads(ran.stdout)["debt"]["debt"]
    deadline = time.monotonic() + 60
    while owed not in (listed := elsewhere.run("frank", "grants", "--debts").stdout):
        assert time.monotonic() < deadline, listed
    assert "it burns" in listed
    stranger = elsewhere.run("mallory", "review", owed, "--yes")
    assert stranger.returncode == 7, stranger.stderr
    done = elsewhere.run("frank", "review", owed, "--yes")
    assert done.returncode == 0, done.stderr
    assert "I have looked at what carol did on testhost" in done.stdout
    assert f"{owed}: reviewed by frank@example.org" in done.stdout
    again = elsewhere.run("heidi", "review", owed, "--yes")
    assert again.returncode in (6, 16), again.stdout  # gone, or it was not shipped yet and refused
    assert host.wait_journal(event("review"), RECUSE_GRANT=owed)
    debts = host.json("recuse", "grants", "--debts", "--json")
    assert isinstance(debts, list)
    assert [one["reviewed_by"] for one in debts if one["debt"] == owed] == ["frank@example.org"]
    verify(host)


def test_rejecting_from_elsewhere(office: Tuple[Host, Elsewhere]) -> None:
    host, elsewhere = office
    asked = ask(host)
    arrives(elsewhere, asked["grant"])
    told = elsewhere.must("frank", "reject", asked["grant"], "--yes", "--why", "not today")
    assert told["taken"] and "rejected" in told["words"]
    shown = host.json("recuse", "show", asked["grant"], "--json")
    assert isinstance(shown, dict)
    assert (shown["rejected_by"], shown["words"]) == ("frank@example.org", "not today")


def test_a_request_for_a_host_that_nobody_knows_is_turned_down(
    office: Tuple[Host, Elsewhere],
) -> None:
    host, _ = office
    asked = ask(host, "--host", "elsewhere")
    assert asked["state"] == "elsewhere"
    told = host.wait_journal(event("rejection"), RECUSE_GRANT=asked["grant"])
    assert told
