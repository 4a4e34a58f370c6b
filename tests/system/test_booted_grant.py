"""Exemptions that somebody asks for and others approve, on a booted host."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import List

import pytest
from accounts import event, export, rows, verify, watching
from host import Host
from office import NAMESPACE, approve, ask, by, entries, granted, open_office, request_words

PASSWORD = "open sesame"


@pytest.fixture(scope="module")
def office(host: Host) -> Iterator[Host]:
    """The host, with two approvers who have keys of their own in their homes."""
    open_office(host)
    host.run("chpasswd", input=f"frank:{PASSWORD}\n", check=True)
    yield host


def test_two_sign_one_login_is_exempt_and_the_next_is_not(office: Host, tmp_path: Path) -> None:
    ran = office.ssh("alice", shlex.join(request_words()))
    assert ran.returncode == 0, ran.stderr
    asked = json.loads(ran.stdout)
    listed = by(office, "frank", "recuse", "requests").stdout
    assert asked["grant"] in listed and "0 of 2" in listed
    shown = by(office, "frank", "recuse", "approve", asked["grant"])
    assert "1 sessions of alice" in shown.stdout and "index rebuild" in shown.stdout
    assert shown.returncode == 2 and "no terminal to ask on" in shown.stderr
    assert approve(office, "frank", asked)["missing"] == 1
    # The other one signs by hand, elsewhere.
    office.run("recuse", "grant", "export", "--request", asked["grant"], "/root/req", check=True)
    assert office.read("/root/req") == asked["request"]
    shutil.copyfile(office.path("/home/heidi/.ssh/id_ed25519"), tmp_path / "key")
    (tmp_path / "key").chmod(0o600)
    (tmp_path / "req").write_text(asked["request"])
    subprocess.run(
        ["ssh-keygen", "-Y", "sign", "-f", tmp_path / "key", "-n", NAMESPACE, tmp_path / "req"],
        check=True, capture_output=True,
    )  # fmt: skip
    office.write("/tmp/req.sig", (tmp_path / "req.sig").read_text())
    done = office.run("recuse", "approve", asked["grant"], "--signature", "/tmp/req.sig")
    assert done.returncode == 0 and "granted" in done.stdout, done.stderr

    with watching(office) as seen:
        assert office.ssh("alice", "echo done").stdout == b"done\n"
    assert (seen.session["outcome"], seen.session["grant"]) == ("exempt", asked["grant"])
    assert office.wait_journal(event("grant-used"), RECUSE_GRANT=asked["grant"])
    with watching(office) as seen:
        office.ssh("alice", "echo again")
    assert seen.session["outcome"] == "recorded"
    verify(office)

    # On another machine, with the file of approvers alone.
    stub = [one for one in entries(office, "exempt") if one["unmapped"]["recuse"]["grant"]][-1]
    use = stub["unmapped"]["recuse"]["grant_use"]
    by_uid = {
        one["metadata"]["uid"]: one["unmapped"]["recuse"]
        for kind in ("request", "approval")
        for one in entries(office, kind)
    }
    signers = tmp_path / "approvers"
    signers.write_text(office.read("/etc/recuse/approvers"))
    assert len(use["approval_entries"]) == 2
    for uid in use["approval_entries"]:
        (tmp_path / "sig").write_text(by_uid[uid]["signature"])
        subprocess.run(
            ["ssh-keygen", "-Y", "verify", "-f", signers, "-I", by_uid[uid]["principal"],
             "-n", NAMESPACE, "-s", tmp_path / "sig"],
            input=by_uid[use["request_entry"]]["request"].encode(), check=True, capture_output=True,
        )  # fmt: skip


REFUSED = [
    pytest.param(["--reason", "boredom"], "is no reason here", id="reason"),
    pytest.param(["--reason", "maintenance"], "needs a ticket", id="ticket"),
    pytest.param(["--for", "9h"], "9h is longer than 4h", id="longest"),
    pytest.param(["--user", "dave"], "no exemption can be asked for dave", id="for-others"),
    pytest.param(["--user", "bob"], "alice may not ask for bob", id="for-an-other"),
    pytest.param(["--host", "elsewhere"], "it is for host elsewhere", id="host"),
]


@pytest.mark.parametrize(("more", "words"), REFUSED)
def test_who_may_not_ask_reads_why(office: Host, more: List[str], words: str) -> None:
    line = ["recuse", "request", "--for", "1h", "--why", "'some work'", *more]
    if "--reason" not in more:
        line += ["--reason", "maintenance", "--ticket", "CHG-7"]
    ran = office.ssh("alice", " ".join(line))
    assert ran.returncode == 16
    assert words in ran.stderr.decode()


def test_ten_logins_at_once_share_three_uses(office: Host) -> None:
    grant = granted(office, "bob", "--uses", "3")
    with watching(office, sessions=10, logins=10) as seen:
        running = [
            subprocess.Popen(office.ssh_command("bob", "true"), stdin=subprocess.DEVNULL)
            for _ in range(10)
        ]
        assert [one.wait(60) for one in running] == [0] * 10
    outcomes = sorted(row["outcome"] for row in seen.sessions)
    assert outcomes == ["exempt"] * 3 + ["recorded"] * 7
    told = office.json("recuse", "show", grant["grant"], "--json")
    assert isinstance(told, dict)
    assert (told["state"], told["left"], len(told["sessions"])) == ("used", 0, 3)


def test_revoking_ends_the_session_within_a_second(office: Host) -> None:
    grant = granted(office, "alice")
    with watching(office) as seen, office.login("alice") as terminal:
        terminal.expect(f"your request {grant['grant']} for alice was granted, until .*by frank@")
        terminal.run("trap '' HUP; setsid sleep 4444 & sleep 5555 & echo started")
        began = time.monotonic()
        ran = by(office, "heidi", "recuse", "revoke", grant["grant"], "--why", "enough")
        assert ran.returncode == 0 and "is no longer exempt" in ran.stdout, ran.stderr
        terminal.expect(f"no longer exempt: grant {grant['grant']} was revoked by heidi")
        terminal.wait(5)
        assert time.monotonic() - began < 3  # with what starting the command itself takes
    assert seen.session["outcome"] == "exempt" and "grant-revoked" in seen.session["flags"]
    assert office.run("pgrep", "-f", "sleep 4444|sleep 5555").returncode == 1
    ended = office.wait_journal(event("exemption-ended"), RECUSE_GRANT=grant["grant"])[0]
    closed = office.wait_journal(event("closed"), RECUSE_SESSION=seen.session["session"])[0]
    apart = int(closed["__REALTIME_TIMESTAMP"]) - int(ended["__REALTIME_TIMESTAMP"])
    assert apart < 1_000_000
    with watching(office), office.login("alice") as terminal:
        terminal.expect(f"grant {grant['grant']} for alice was revoked by heidi: enough")
        terminal.line("exit")
        terminal.wait()
    with watching(office):
        assert b"recuse:" not in office.ssh("alice", "true").stdout  # nor on what is none


def test_revoking_records_a_supervised_session_from_then_on(office: Host) -> None:
    grant = granted(office, "alice", "--supervised")
    with watching(office) as seen, office.login("alice") as terminal:
        terminal.run("echo in-private")
        ran = by(office, "heidi", "recuse", "revoke", grant["grant"], "--why", "enough")
        assert ran.returncode == 0, ran.stderr
        terminal.expect("no longer exempt")
        terminal.run("echo on-record")
        terminal.line("exit")
        assert terminal.wait() == 0
    assert seen.session["outcome"] == "partial"
    kept = export(office, seen.session["session"])
    assert "on-record" in kept and "in-private" not in kept
    verify(office)


def test_a_password_approves_where_it_may(office: Host) -> None:
    asked = ask(office, "bob", "--reason", "private")
    request = {"verb": "approve", "grant": asked["grant"], "password": "wrong"}
    script = (
        "import json,sys; from recuse.control import ask\n"
        "from recuse.errors import RecuseError\n"
        "try: print(json.dumps(ask(json.load(sys.stdin), timeout_seconds=30)))\n"
        "except RecuseError as e: print(e.message)"
    )
    wrong = by(office, "frank", "python3", "-c", script, input=json.dumps(request))
    assert "is not the password of frank" in wrong.stdout, wrong.stdout + wrong.stderr
    request["password"] = PASSWORD
    right = by(office, "frank", "python3", "-c", script, input=json.dumps(request))
    assert json.loads(right.stdout)["grant"]["method"] == "pam", right.stdout
    assert PASSWORD not in json.dumps(entries(office, "approval"))
    with watching(office) as seen:
        office.ssh("bob", "true")
    assert seen.session["outcome"] == "exempt"


def test_broken_glass_has_to_be_reviewed(office: Host) -> None:
    ran = office.ssh("carol", "recuse break-glass --why 'it burns'")
    assert ran.returncode == 0 and b"has to review it" in ran.stdout, ran.stderr
    with watching(office) as seen:
        office.ssh("carol", "true")
    assert seen.session["outcome"] == "exempt"
    grant = seen.session["grant"]
    assert "it burns" in by(office, "frank", "recuse", "grants", "--debts").stdout
    own = office.ssh("alice", "recuse break-glass --why 'me too'")
    assert own.returncode == 16 and b"may not break the glass" in own.stderr
    reviewed = by(office, "frank", "recuse", "review", grant, "--yes", "--words", "it did burn")
    assert reviewed.returncode == 0, reviewed.stderr
    assert "reviewed by frank@example.org" in reviewed.stdout
    assert office.wait_journal(event("review"), RECUSE_GRANT=grant)


def test_an_agent_that_restarts_forgets_nothing(office: Host) -> None:
    granted(office, "bob", "--uses", "2")
    with watching(office) as seen:
        office.ssh("bob", "true")
    assert seen.session["outcome"] == "exempt"
    office.run("kill -9 $(systemctl show -P MainPID recuse-agent.service)", check=True)
    with watching(office, sessions=2, logins=2) as seen:
        office.ssh("bob", "true")
        office.ssh("bob", "true")
    assert sorted(row["outcome"] for row in seen.sessions) == ["exempt", "recorded"]
    assert rows(office)
    verify(office)


def test_a_grant_is_carried_by_file(office: Host) -> None:
    grant = granted(office, "alice")
    office.run("recuse", "grant", "export", grant["grant"], "/root/grant.json", check=True)
    again = office.run("recuse", "grant", "import", "/root/grant.json")
    assert again.returncode == 16 and "is here already" in again.stderr
    altered = office.read("/root/grant.json").replace(grant["grant"], "g-" + "a" * 16)
    office.write("/root/altered.json", altered)
    forged = office.run("recuse", "grant", "import", "/root/altered.json")
    assert forged.returncode == 14, forged.stderr
    assert office.run("recuse", "grant", "import", "/etc/passwd").returncode == 16


def test_evidence_is_checked_elsewhere_word_by_word(office: Host, tmp_path: Path) -> None:
    """The machine that runs the tests has no recuse: what the README says needs none."""
    grant = granted(office, "alice", "--uses", "1")["grant"]
    assert office.ssh("alice", "true").returncode == 0
    office.run("recuse", "sync", check=True)
    (session,) = json.loads(office.run("recuse", "show", grant, "--json").stdout)["sessions"]
    office.run("recuse", "export", session, "--bundle", "/root/bag", check=True)
    bag = office.copy_out("/root/bag", tmp_path)
    said = re.findall(r"^```sh\n(.*?)^```$", (bag / "README.md").read_text(), re.M | re.S)
    done = subprocess.run(
        ["sh", "-e"], input="".join(said), cwd=bag, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f'Good "{NAMESPACE}" signature') == 2
    assert done.stdout.count("is in local/recuse/host/") >= 5
    verify(office)
