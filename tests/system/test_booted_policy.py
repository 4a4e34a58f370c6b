"""Bad policy or configuration: said clearly, with no effect on logins."""

from __future__ import annotations

import subprocess

import pytest
from accounts import RULES, event, rows, verify, watching
from host import Host

POLICY = "/etc/recuse/policy.d/20-more.toml"

NEVER_EXEMPT = """
[[rule]]
name = "nobody-is-exempt"
effect = "require-record"
users = ["dave"]
"""


@pytest.fixture(autouse=True)
def restored(host: Host) -> None:
    host.path(POLICY).unlink(missing_ok=True)
    host.write("/etc/recuse/policy.d/10-test.toml", RULES)
    cursor = host.cursor()
    host.run("systemctl", "reload", "recuse-agent.service", check=True)
    host.wait_journal(event("reloaded"), after=cursor)


def test_new_rules_are_in_force_after_a_reload(host: Host) -> None:
    cursor = host.cursor()
    host.write(POLICY, NEVER_EXEMPT)
    host.run("systemctl", "reload", "recuse-agent.service", check=True)
    host.wait_journal(event("policy-changed"), after=cursor)
    with watching(host) as seen:
        host.ssh("dave", "true")
    assert seen.session["outcome"] == "recorded"
    assert seen.session["rule"] == "nobody-is-exempt"


BAD = [
    pytest.param("[[rule]\n", ":1", id="syntax"),
    pytest.param('\n[[rule]]\nname = "x"\neffect = "exempt"\n', "reason", id="no-reason"),
    pytest.param('[[rule]]\nname = "x"\neffect = "record"\nusrs = ["a"]\n', "usrs", id="key"),
]


@pytest.mark.parametrize(("text", "named"), BAD)
def test_bad_policy_is_named_and_the_old_one_stays(host: Host, text: str, named: str) -> None:
    cursor = host.cursor()
    host.write(POLICY, text)
    checked = host.run("recuse", "policy", "check")
    assert checked.returncode == 4
    assert "20-more.toml" in checked.stderr
    assert named in checked.stderr
    host.run("systemctl", "reload", "recuse-agent.service")
    said = host.wait_journal(event("policy-bad"), after=cursor)[0]
    assert "20-more.toml" in said["MESSAGE"]
    with watching(host) as seen:
        assert host.ssh("dave", "true").returncode == 0
    assert seen.session["outcome"] == "exempt"


def test_bad_policy_at_start_still_lets_people_in(host: Host) -> None:
    host.write(POLICY, "[[rule]\n")
    host.run("systemctl", "restart", "recuse-agent.service", check=True)
    with watching(host) as seen:
        assert host.ssh("alice", "exit 3").returncode == 3
    assert seen.session["outcome"] == "recorded"


def test_bad_policy_at_start_leaves_the_last_good_one_in_force(host: Host) -> None:
    cursor = host.cursor()
    host.write(POLICY, "[[rule]\n")
    host.run("systemctl", "restart", "recuse-agent.service", check=True)
    said = host.wait_journal(event("policy-bad"), after=cursor)[0]
    assert "the last good policy" in said["MESSAGE"] and said["PRIORITY"] == "3"
    with watching(host) as seen:
        assert host.ssh("dave", "true").returncode == 0
    assert (seen.session["outcome"], seen.session["rule"]) == ("exempt", "dave-is-exempt")


def test_bad_policy_at_start_without_a_good_one_records_everybody(host: Host) -> None:
    cursor = host.cursor()
    host.write(POLICY, "[[rule]\n")
    host.run("rm", "-r", "/var/lib/recuse/policy.last", check=True)
    host.run("systemctl", "restart", "recuse-agent.service", check=True)
    said = host.wait_journal(event("policy-bad"), after=cursor)[0]
    assert "recording everybody" in said["MESSAGE"]
    with watching(host) as seen:
        assert host.ssh("dave", "true").returncode == 0
    assert (seen.session["outcome"], seen.session["rule"]) == ("recorded", None)


def named(letter: str) -> str:
    """Two rules that come and go together: dave is exempt and alice recorded by one of a letter."""
    exempt = RULES.partition("[[rule]]")[2].partition("[[rule]]")[0]
    return (
        "[[rule]]" + exempt.replace("dave-is-exempt", f"dave-{letter}")
        + f'[[rule]]\nname = "alice-{letter}"\neffect = "record"\nusers = ["alice"]\n'
    )  # fmt: skip


def test_reload_under_a_load_of_logins_is_all_or_nothing(host: Host) -> None:
    """Each session is decided by one whole policy, the one whose digest its entry has."""
    rules = "/etc/recuse/policy.d/10-test.toml"
    known = {row["session"] for row in rows(host)}
    digests = {}
    cursor = host.cursor()
    clients = []
    for turn in range(8):
        letter = "ab"[turn % 2]
        after = host.cursor()
        host.write(rules, named(letter))
        checked = host.json("recuse", "policy", "check", "--json")
        assert isinstance(checked, dict)
        digests[checked["digest"]] = letter
        for user in ("dave", "alice", "dave", "alice"):
            clients.append(
                subprocess.Popen(
                    host.ssh_command(user, "exit 3"),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                )
            )
        host.run("systemctl", "reload", "recuse-agent.service", check=True)
        host.wait_journal(event("policy-changed"), after=after)
    for client in clients:
        out, _ = client.communicate(timeout=60)
        assert (client.returncode, out) == (3, b"")
    host.wait_journal(event("logout"), count=len(clients), after=cursor)
    new = [row for row in rows(host) if row["session"] not in known and row["kind"] != "none"]
    assert len(new) == len(clients)
    letters = set()
    for row in new:
        shown = host.json("recuse", "show", row["session"], "--json")
        assert isinstance(shown, dict)
        which = digests.get(shown["policy"])
        # The first ones may still have met the policy before.
        before = {"dave": "dave-is-exempt", "alice": "everybody"}
        assert row["rule"] == (f"{row['user']}-{which}" if which else before[str(row["user"])])
        letters.add(which)
    assert {"a", "b"} <= letters
    verify(host)


def test_bad_configuration_is_named_and_logins_go_on(host: Host) -> None:
    good = host.read("/etc/recuse/recuse.toml")
    cursor = host.cursor()
    try:
        host.write("/etc/recuse/recuse.toml", good + '\n[spool]\nmin_free = "many"\n')
        host.run("systemctl", "reload", "recuse-agent.service")
        said = host.wait_journal(event("config-bad"), after=cursor)[0]
        assert "recuse.toml" in said["MESSAGE"]
        with watching(host) as seen:
            assert host.ssh("alice", "exit 3").returncode == 3
        assert seen.session["outcome"] == "recorded"
    finally:
        host.write("/etc/recuse/recuse.toml", good)


def test_explain_names_the_rule(host: Host) -> None:
    told = host.run(
        "recuse", "policy", "explain", "--user", "dave", "--service", "sshd", check=True
    ).stdout
    assert "dave-is-exempt" in told
    assert "exempt" in told
