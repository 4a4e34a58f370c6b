"""Exemptions that somebody asks for and others approve, on a booted host."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest
from accounts import event, export, find_bytes, rows, verify, watching
from host import Host, Terminal
from office import (
    NAMESPACE,
    Grant,
    approve,
    ask,
    by,
    entries,
    granted,
    key_of,
    open_office,
    request_words,
)

PASSWORD = "open sesame"
HIDDEN = "not-for-the-record"


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
    assert "1 session of alice" in shown.stdout and "index rebuild" in shown.stdout
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
        ran = by(office, "heidi", "recuse", "revoke", grant["grant"], "--why", "enough")
        assert ran.returncode == 0 and "is no longer exempt" in ran.stdout, ran.stderr
        terminal.expect(f"no longer exempt: grant {grant['grant']} was revoked by heidi")
        terminal.wait()
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


def says(terminal: Terminal, command: str, *dialogue: Tuple[str, str]) -> Tuple[int, str]:
    """Give a shell a command that asks; answer each question; return its status and its words."""
    terminal.expect(r"\$ ")  # a prompt that comes late would stand in the first line of the words
    begin = len(terminal.output)
    terminal.line(f"{command}; echo do''ne-$?-")
    for question, answer in dialogue:
        terminal.expect(question)
        terminal.send(answer)
    status = int(terminal.expect(r"done-(\d+)-\r\n").group(1))
    return status, terminal.output[begin:].decode()


def state(host: Host, grant: Grant) -> Tuple[str, int]:
    shown = host.json("recuse", "show", grant["grant"], "--json")
    assert isinstance(shown, dict)
    return shown["state"], shown["missing"]


SURE = r"sign that\? yes or no: "


def test_an_approver_reads_what_they_sign_and_is_asked(office: Host) -> None:
    asked = ask(office, "alice", "--uses", "2", "--level", "commands")
    locked = "/home/frank/locked"
    made = by(
        office, "frank", "sh", "-ec",
        f"cp {key_of('frank')} {locked}; ssh-keygen -q -p -P '' -N '{PASSWORD}' -f {locked}",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    approving = f"recuse approve {asked['grant']}"
    with office.login("frank") as terminal:
        for answer, status, words in (
            ("no\r", 16, "nothing was signed"),
            ("\r", 16, "nothing was signed"),
            ("\x04", 16, "nothing was signed"),
            ("\x03", 130, ""),
        ):
            ran, told = says(terminal, approving, (SURE, answer))
            assert ran == status and words in told, told
        for line in (
            r"2 sessions of alice \(uid 1000\) on testhost may be exempt",
            r"between    .* and .*",
            r"kept       commands \(who, when, from where, and the command line\)",
            r"reason     maintenance, ticket CHG-7",
            r"why        index rebuild",
            r"asked by   alice",
            rf"id         {asked['grant']}",
        ):
            assert re.search(rf"^{line}\r$", told, re.M), told
        # The passphrase of a key is ssh-keygen's to ask for, and has the last word.
        locked_key = f"{approving} --key {locked}"
        wrong = (SURE, "yes\r"), ("Enter passphrase.*: ", "wrong\r")
        ran, told = says(terminal, locked_key, *wrong)
        assert ran == 14 and "ssh-keygen did not sign" in told, told
        ran, told = says(terminal, locked_key, wrong[0], (wrong[1][0], "\x03"))
        assert ran in (14, 130), told
        assert state(office, asked) == ("pending", 2)
        ran, told = says(terminal, locked_key, wrong[0], (wrong[1][0], f"{PASSWORD}\r"))
        assert ran == 0 and "1 approval missing, from: leads" in told, told
        assert PASSWORD not in terminal.output.decode()
    assert state(office, asked) == ("pending", 1)
    assert by(office, "alice", "recuse", "reject", asked["grant"]).returncode == 0


def test_a_password_approves_where_it_may(office: Host) -> None:
    asked = ask(office, "bob", "--reason", "private")
    sure, password = r"approve it with your password\? yes or no: ", "password of frank: "
    approving = f"recuse approve --password {asked['grant']}"
    with office.login("frank") as terminal:
        for dialogue, status, words in (
            ([(sure, "no\r")], 16, "nothing was signed"),
            ([(sure, "yes\r"), (password, "\x03")], 130, ""),
            ([(sure, "yes\r"), (password, "wrong\r")], 7, "is not the password of frank"),
        ):
            ran, told = says(terminal, approving, *dialogue)
            assert ran == status and words in told, told
        assert state(office, asked) == ("pending", 1)
        ran, told = says(terminal, approving, (sure, "yes\r"), (password, f"{PASSWORD}\r"))
        assert ran == 0 and "granted" in told, told
        other = ask(office, "alice")
        ran, told = says(
            terminal, f"recuse approve --password {other['grant']}",
            (sure, "yes\r"), (password, f"{PASSWORD}\r"),
        )  # fmt: skip
        assert ran == 16 and "approval by password is not allowed here" in told, told
        assert PASSWORD not in terminal.output.decode()
    (entry,) = [
        one["unmapped"]["recuse"]
        for one in entries(office, "approval")
        if one["unmapped"]["recuse"]["grant"] == asked["grant"]
    ]
    assert (entry["method"], entry["principal"]) == ("pam", "frank@example.org")
    assert "signature" not in entry and PASSWORD not in json.dumps(entry)
    shown = office.run("recuse", "show", asked["grant"]).stdout
    assert "approved by frank@example.org, by password" in shown
    with watching(office) as seen:
        office.ssh("bob", "true")
    assert seen.session["outcome"] == "exempt"
    assert by(office, "alice", "recuse", "reject", other["grant"]).returncode == 0


def test_a_grant_for_a_pause_is_used_in_a_session(office: Host) -> None:
    with watching(office) as seen, office.login("alice") as terminal:
        ran, told = says(terminal, "recuse pause --reason maintenance")
        assert ran == 7 and "ask for it: recuse request --scope pause" in told, told
        words = request_words("--scope", "pause", "--max", "5m")
        ran, told = says(terminal, shlex.join(words) + " >pause.json")
        assert ran == 0, told
        asked = json.loads(office.read("/home/alice/pause.json"))
        assert (asked["scope"], approve(office, "frank", asked)["state"]) == ("pause", "pending")
        assert approve(office, "heidi", asked)["state"] == "granted"
        cursor = office.cursor()
        ran, told = says(terminal, "recuse pause --reason private")
        assert ran == 18 and "is not what the pause was granted for: maintenance" in told, told
        ran, told = says(terminal, "recuse pause --reason maintenance --for 1h")
        assert ran == 18 and "is too long here" in told, told
        terminal.run("echo before")
        unseen = f"echo {HIDDEN[:4]}''{HIDDEN[4:]}"  # what is typed is shown, and so recorded
        ran, told = says(terminal, f"recuse pause --reason maintenance && {unseen}")
        assert ran == 0 and HIDDEN in told, told
        ran, told = says(terminal, "recuse resume")
        assert ran == 0, told
        ran, told = says(terminal, "recuse pause --reason maintenance")
        assert ran == 7 and "may not be paused" in told, told
        terminal.line("echo after; exit 0")
        assert terminal.wait() == 0
    session = seen.session["session"]
    assert (seen.session["outcome"], seen.session["grant"]) == ("partial", None)
    (entry,) = [
        one["unmapped"]["recuse"]
        for one in entries(office, "pause")
        if one["unmapped"]["recuse"]["session"] == session
    ]
    assert (entry["grant"], entry["grant_use"]["n"]) == (asked["grant"], 1)
    assert (entry["pause_reason"], entry["ticket"]) == ("maintenance", "CHG-7")
    assert len(entry["grant_use"]["approval_entries"]) == 2
    for kind in ("grant-used", "paused", "resumed"):
        assert office.wait_journal(event(kind), after=cursor, RECUSE_SESSION=session)
    shown = office.json("recuse", "show", asked["grant"], "--json")
    assert isinstance(shown, dict)
    assert (shown["state"], shown["left"], shown["sessions"]) == ("used", 0, [session])

    # What was hidden is not there, and that it is, is.
    with office.terminal("recuse", "play", "-s", "100", "-i", "1", session) as screen:
        screen.expect("before")
        screen.expect(r"paused reason=maintenance by=alice seq=\d+")
        screen.expect(r"\[gap: [^]]*cause=pause")
        screen.expect("after")
        screen.wait()
        assert HIDDEN not in screen.output.decode()
    assert find_bytes(office, HIDDEN, "/var/spool/recuse", "/var/lib/recuse") == []
    verify(office)


def test_a_grant_of_output_spares_what_is_typed(office: Host) -> None:
    rule = '[[rule]]\nname = "typed"\neffect = "record"\nusers = ["alice"]\nlevel = "full"\n'
    office.write("/etc/recuse/policy.d/20-typed.toml", rule)
    office.run("systemctl", "reload", "recuse-agent.service", check=True)
    grant = granted(office, "alice", "--level", "output")
    found = []
    for _ in range(2):
        with watching(office) as seen, office.login("alice") as terminal:
            terminal.run("echo shown")
            terminal.line("exit")
            terminal.wait()
        assert seen.session["outcome"] == "recorded"
        cast = export(office, seen.session["session"], "cast").splitlines()[1:]
        codes = {json.loads(line)[1] for line in cast}
        assert "o" in codes
        found.append((seen.session["grant"], "i" in codes))
    assert found == [(grant["grant"], False), (None, True)]
    office.path("/etc/recuse/policy.d/20-typed.toml").unlink()
    office.run("systemctl", "reload", "recuse-agent.service", check=True)
    verify(office)


def broken_glass(host: Host) -> str:
    """Have carol break the glass and log in; give the debt."""
    ran = host.ssh("carol", "recuse break-glass --why 'it burns'")
    assert ran.returncode == 0 and b"has to review it" in ran.stdout, ran.stderr
    with watching(host) as seen:
        host.ssh("carol", "true")
    assert seen.session["outcome"] == "exempt"
    owed: str = seen.session["grant"]
    assert "it burns" in by(host, "frank", "recuse", "grants", "--debts").stdout
    return owed


def review_of(host: Host, owed: str) -> Dict[str, Any]:
    """Read the entry of a review."""
    assert host.wait_journal(event("review"), RECUSE_GRANT=owed)
    (found,) = [
        one["unmapped"]["recuse"]
        for one in entries(host, "review")
        if one["unmapped"]["recuse"]["grant"] == owed
    ]
    return dict(found)


def test_broken_glass_has_to_be_reviewed(office: Host) -> None:
    own = office.ssh("alice", "recuse break-glass --why 'me too'")
    assert own.returncode == 16 and b"may not break the glass" in own.stderr
    owed = broken_glass(office)
    reviewed = by(office, "frank", "recuse", "review", owed, "--yes", "--words", "it did burn")
    assert reviewed.returncode == 0, reviewed.stderr
    assert "reviewed by frank@example.org" in reviewed.stdout
    entry = review_of(office, owed)
    assert (entry["method"], entry["words"]) == ("signature", "it did burn")


def test_broken_glass_is_reviewed_by_password(office: Host) -> None:
    owed = broken_glass(office)
    sure, password = r"review it with your password\? yes or no: ", "password of frank: "
    with office.login("frank") as terminal:
        for dialogue, status, words in (
            ([(sure, "no\r")], 16, "nothing was signed"),
            ([(sure, "yes\r"), (password, "\x03")], 130, ""),
            ([(sure, "yes\r"), (password, "wrong\r")], 7, "is not the password of frank"),
            ([(sure, "yes\r"), (password, f"{PASSWORD}\r")], 0, "reviewed by frank@example.org"),
        ):
            ran, told = says(terminal, f"recuse review --password {owed}", *dialogue)
            assert ran == status and words in told, told
            assert "I have looked at what carol did on testhost" in told
        assert PASSWORD not in terminal.output.decode()
    entry = review_of(office, owed)
    assert entry["method"] == "pam" and "signature" not in entry
    again = by(office, "heidi", "recuse", "review", owed, "--yes")
    assert again.returncode == 16 and "was reviewed by frank@example.org" in again.stderr


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
