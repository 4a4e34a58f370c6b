"""Bad policy or configuration: said clearly, with no effect on logins."""

from __future__ import annotations

import pytest
from accounts import RULES, event, watching
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
    host.run("systemctl", "reload", "recuse-agent.service", check=True)


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
