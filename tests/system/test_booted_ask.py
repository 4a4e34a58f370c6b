"""Rules that ask: logins decided by a program and by a policy engine, and what failure means."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from accounts import RULES, enable, event, rows, verify, watching
from host import TOP, Host

STATED = 'reason = "asked"\nowner = "ops@example.org"\nexpires = 2099-12-31\n'
PROGRAMS = {
    "shift": """
        [ $(id -un) = recuse-consult ] && [ -z "$HOME$PATH_INFO" ] || exit 9
        grep -q '"user":"frank"' && echo '{"match": true, "why": "frank has the shift"}'
    """,
    "broken": "echo no such shift >&2; exit 3",
    "hangs": "trap '' TERM; sleep 1000 & sleep 1000",
    "nosy": """
        cat /var/lib/recuse/host.key && exit 5
        cat /etc/shadow && exit 6
        touch /usr/local/lib/recuse/mine /var/lib/recuse/mine && exit 7
        kill -0 $(pidof -x recuse-agent) && exit 8
        exit 4
    """,
}
REGO = """
package recuse
import rego.v1

default backup := false
backup if {
    input.user == "carol"
    input.source == "192.0.2.7"
    input.command == "true"
}
"""


def ask(name: str, whom: str, failure: str, timeout: str, more: str = "") -> str:
    stated = f'on_failure = "{failure}"\non_timeout = "{timeout}"\n'
    return f"[ask.{name}]\n{whom}\n{stated}{more}\n"


def rule(user: str, name: str, effect: str = "exempt") -> str:
    text = f'[[rule]]\nname = "ask-{name}"\neffect = "{effect}"\nask = "{name}"\n'
    text += f'users = ["{user}"]\n'
    return text + (STATED if effect == "exempt" else "")


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host whose policy asks, with an engine that evaluates Rego."""
    with Host() as host:
        rego = tmp_path_factory.mktemp("rego") / "recuse.rego"
        rego.write_text(REGO)
        engine_process = subprocess.Popen(
            host.network(sys.executable, str(TOP / "tests/opa.py"), str(rego)),
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert engine_process.stdout is not None
        url = engine_process.stdout.readline().strip()
        text = RULES
        for name, script in PROGRAMS.items():
            host.write(f"/usr/local/lib/recuse/{name}", f"#!/bin/sh\n{script}\n", mode=0o755)
        for name, failure, timeout in (
            ("shift", "no-match", "no-match"), ("broken", "refuse", "match"),
            ("hangs", "match", "no-match"), ("nosy", "match", "match"),
        ):  # fmt: skip
            program = f'program = ["/usr/local/lib/recuse/{name}"]'
            deadline = 'deadline = "300ms"\n' if name == "hangs" else 'deadline = "1500ms"\n'
            text += ask(name, program, failure, timeout, deadline)
        engine = f'url = "{url}/v1/data/recuse/backup"'
        text += ask("engine", engine, "no-match", "no-match", 'deadline = "1500ms"\n')
        for user, name in (
            ("frank", "shift"), ("carol", "engine"), ("bob", "broken"), ("alice", "hangs"),
        ):  # fmt: skip
            text += rule(user, name)
        text += rule("root", "nosy", "deny")
        try:
            enable(host, text)
            yield host
        finally:
            engine_process.terminate()
            engine_process.wait()
            engine_process.stdout.close()


def test_program_exempts_as_the_user_it_runs_as(asking: Host) -> None:
    with watching(asking) as seen:
        assert asking.ssh("frank", "exit 4").returncode == 4
    assert (seen.session["outcome"], seen.session["rule"]) == ("exempt", "ask-shift")
    verify(asking)


def test_engine_decides_in_rego_by_the_command(asking: Host) -> None:
    with watching(asking) as seen:
        assert asking.ssh("carol", "true").returncode == 0
    assert (seen.session["outcome"], seen.session["rule"]) == ("exempt", "ask-engine")
    with watching(asking) as seen:
        assert asking.ssh("carol", "true; true").returncode == 0
    assert seen.session["outcome"] == "recorded"


def test_failure_refuses_where_that_is_stated(asking: Host) -> None:
    before, cursor = len(rows(asking)), asking.cursor()
    result = asking.ssh("bob", "true")
    assert result.returncode != 0
    told = asking.wait_journal(event("ask-failed"), after=cursor)[0]
    assert told["RECUSE_STDERR"] == "no such shift" and told["RECUSE_PROCEEDING"] == "refuse"
    last = rows(asking)[before:]
    assert [(row["outcome"], row["rule"]) for row in last] == [("refused", "ask-broken")]


def test_time_out_records_and_delays_nobody_for_long(asking: Host) -> None:
    cursor = asking.cursor()
    with watching(asking) as seen:
        assert asking.ssh("alice", "exit 3").returncode == 3
    assert seen.session["outcome"] == "recorded"
    told = asking.wait_journal(event("ask-failed"), count=2, after=cursor)
    assert {one["RECUSE_FAULT"] for one in told} == {"no answer within 300 ms"}
    # Nothing of the program is left.
    left = asking.run("ps -u recuse-consult -o args= | grep -c '[s]leep 1000'")
    assert left.stdout.strip() == "0"


def test_program_reads_no_secret_and_kills_nobody(asking: Host) -> None:
    before = asking.run("systemctl", "show", "-P", "MainPID", "recuse-agent.service").stdout
    cursor = asking.cursor()
    asking.ssh("root", "true")
    told = asking.wait_journal(event("ask-failed"), after=cursor)[0]
    assert told["RECUSE_FAULT"] == "exit status 4"
    assert asking.run("systemctl", "show", "-P", "MainPID", "recuse-agent.service").stdout == before


def test_dead_service_is_a_failure_and_comes_back(asking: Host) -> None:
    asking.run("systemctl", "stop", "recuse-consult.socket", "recuse-consult.service", check=True)
    cursor = asking.cursor()
    try:
        with watching(asking) as seen:
            assert asking.ssh("frank", "true").returncode == 0
        assert seen.session["outcome"] == "recorded"
        assert asking.wait_journal(event("consult-down"), after=cursor)
    finally:
        asking.run("systemctl", "start", "recuse-consult.socket", check=True)
    asking.run("systemctl", "kill", "-s", "KILL", "recuse-consult.service")
    with watching(asking) as seen:
        assert asking.ssh("frank", "true").returncode == 0
    assert seen.session["outcome"] == "exempt"


def test_replay_and_test_of_what_was_asked(asking: Host) -> None:
    """The answers are in the entries: nobody has to be asked again."""
    session = next(row for row in rows(asking) if row["rule"] == "ask-shift")
    shown = asking.json("recuse", "show", session["session"], "--json")
    assert isinstance(shown, dict) and shown["answers"]["shift"]["match"] is True
    asking.run("systemctl", "stop", "recuse-consult.socket", "recuse-consult.service", check=True)
    try:
        same = asking.json("recuse", "policy", "replay", "--json")
        assert isinstance(same, dict) and same["changes"] == [] and same["uncertain"] == 0
        asking.write("/root/other/a.toml", RULES)
        other = asking.json("recuse", "policy", "replay", "--policy", "/root/other", "--json")
        assert isinstance(other, dict) and other["newly_exempt"]["count"] == 0
        changed = {one["session"]: one["after"]["verdict"] for one in other["changes"]}
        assert changed[session["session"]] == "record"
    finally:
        asking.run("systemctl", "start", "recuse-consult.socket", check=True)
    found = asking.run("recuse", "policy", "lint", "--accounts", "--sessions", "--percent", "99")
    codes = {line.split(": ")[1] for line in found.stdout.splitlines()}
    assert found.returncode == 20 and codes == {"exempt-unanswered"}
    asking.write(
        "/root/t.toml",
        '[[case]]\nname = "shift"\nfacts = { user = "frank", service = "sshd" }\n'
        'answers = { shift = "match" }\nexpect = { verdict = "exempt", rule = "ask-shift" }\n',
    )
    assert asking.run("recuse", "policy", "test", "/root/t.toml").returncode == 0
    told = asking.run("recuse", "doctor", "--json").stdout
    assert '"consult"' in told


def test_users_cannot_ask(asking: Host) -> None:
    for user in ("dave", "recuse", "recuse-ship"):
        tried = asking.run(
            "runuser", "-u", user, "--", "python3", "-c",
            "import socket; socket.socket(socket.AF_UNIX).connect('/run/recuse/consult.sock')",
        )  # fmt: skip
        assert tried.returncode != 0 and "Permission denied" in tried.stderr
