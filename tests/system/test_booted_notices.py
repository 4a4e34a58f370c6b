"""What users on terminals are told, in their language, and that nobody else is told anything."""

from __future__ import annotations

import hashlib
import json

import pytest
from accounts import event, rows, watching
from host import Host, Terminal

GERMAN = ("SetEnv=LANG=de_DE.UTF-8",)
CONFIRM = """
[[rule]]
name = "bob-agrees"
effect = "record"
users = ["bob"]
confirm = true
notice = "pci"
"""
NOTICES = """
[[notice]]
name = "pci"
language = "en"
record = "Cardholder data: all that {user} sees on {host} is recorded."
"""


@pytest.fixture(scope="module", autouse=True)
def policy(host: Host) -> None:
    host.write("/etc/recuse/policy.d/20-agree.toml", CONFIRM)
    host.write("/etc/recuse/notices.d/10-pci.toml", NOTICES)
    host.run("systemctl", "reload", "recuse-agent.service", check=True)


def leave(terminal: Terminal) -> None:
    terminal.expect("[%$#>] ")
    terminal.line("exit 0")
    terminal.wait()


def test_german_user_sees_a_german_notice(host: Host) -> None:
    with watching(host) as seen, host.login("alice", options=GERMAN) as terminal:
        terminal.expect("wird aufgezeichnet")
        terminal.expect("ansehen dürfen sie: ")
        leave(terminal)
    row = seen.session
    assert row["notice_language"] == "de" and row["notice_sha256"] and row["agreed"] is None


def test_exempt_user_sees_reason_and_end(host: Host) -> None:
    with watching(host), host.login("dave") as terminal:
        terminal.expect("is not recorded: handles patient data")
        terminal.expect("owner privacy@example.org, until 2099-12-31")
        leave(terminal)


def test_user_who_agrees_gets_in_and_the_proof_is_kept(host: Host) -> None:
    with watching(host) as seen, host.login("bob") as terminal:
        terminal.expect("yes or no: ")
        shown = terminal.output.partition(b"recuse: do you agree?")[0].replace(b"\r\n", b"\n")
        terminal.line("yes")
        leave(terminal)
    row = seen.session
    shown = shown[shown.index(b"Cardholder") :]  # sshd shows its own before
    assert shown == b"Cardholder data: all that bob sees on testhost is recorded.\n"
    assert row["notice_sha256"] == hashlib.sha256(shown).hexdigest()
    assert row["agreed"] and row["outcome"] == "recorded"
    told = host.run("recuse", "show", row["session"], check=True).stdout
    assert "shown in en, agreed to at " in told


def test_user_who_does_not_agree_is_refused(host: Host) -> None:
    cursor = host.cursor()
    with host.login("bob", options=GERMAN) as terminal:
        terminal.expect("yes .ja. oder no .nein.: ")
        terminal.line("no")
        terminal.expect("nicht zugestimmt")
        assert terminal.wait() == 77
    told = host.wait_journal(event("refused"), after=cursor)
    (refused,) = [row for row in rows(host) if row["session"] == told[0]["RECUSE_SESSION"]]
    assert refused["outcome"] == "refused" and "not-agreed" in refused["notes"]


@pytest.mark.parametrize("user", ["alice", "bob", "dave"])
def test_not_a_byte_without_a_terminal(host: Host, user: str) -> None:
    with watching(host):
        result = host.ssh(user, "echo out; echo err >&2; exit 5", options=GERMAN)
    assert (result.returncode, result.stdout, result.stderr) == (5, b"out\n", b"err\n")


def test_mistake_in_a_template_is_named_and_changes_nothing(host: Host) -> None:
    host.write("/etc/recuse/notices.d/10-pci.toml", NOTICES.replace("{user}", "{usr}"))
    checked = host.run("/usr/lib/recuse/recuse-agent", "--check")
    assert checked.returncode == 3
    assert "10-pci.toml:5: 'record' there is no field 'usr'; did you mean" in checked.stderr
    assert host.run("systemctl", "reload", "recuse-agent.service").returncode != 0
    with watching(host), host.login("bob") as terminal:
        terminal.expect("Cardholder data: all that bob sees")
        terminal.expect("yes or no: ")
        terminal.line("yes")
        leave(terminal)


def test_user_sees_and_verifies_the_own_record_without_privileges(host: Host) -> None:
    with watching(host) as seen:
        host.ssh("dave", "true")
    own = seen.session["session"]
    key = host.read("/var/lib/recuse/host.pub").strip()
    with watching(host), host.login("dave") as terminal:
        terminal.expect("[%$#>] ")
        assert b"exempt by rule dave-is-exempt" in terminal.run("recuse status")
        listed = json.loads(terminal.run("recuse sessions --mine --json"))
        assert {row["user"] for row in listed["sessions"]} == {"dave"}
        assert own in {row["session"] for row in listed["sessions"]}
        told = terminal.run(f"recuse verify --mine --key '{key}'; echo code $?")
        assert own.encode() in told and b"code 0" in told and b"fault" not in told
        one = json.loads(terminal.run(f"recuse verify --mine --json --key '{key}' {own}"))
        assert one["ok"] and [row["outcome"] for row in one["sessions"]] == ["exempt"]
        wrong = key.replace("testhost", "otherhost")
        assert b"code 0" not in terminal.run(f"recuse verify --mine --key '{wrong}'; echo code $?")
        assert b"code 7" in terminal.run("recuse verify; echo code $?")
        terminal.line("exit 0")
        terminal.wait()
