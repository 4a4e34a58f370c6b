"""recuse policy replay, lint and test, as they are called."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_cli import AGENT, EXEMPT, FORWARD, RECORDED, REFUSED, Made, made, recuse

from recuse import cli_whatif

__all__ = ("made", "recuse")  # fixtures

GROUNDS = 'reason = "because"\nowner = "o@example.org"\nexpires = 2031-12-31\n'
REPOSITORY = Path(__file__).resolve().parents[2]


def rule(name: str, effect: str, more: str = "") -> str:
    grounds = GROUNDS if effect == "exempt" else ""
    return f'[[rule]]\nname = "{name}"\neffect = "{effect}"\n{grounds}{more}\n'


@pytest.fixture
def other(made: Made) -> Path:
    """Another policy than that of the sessions: ann is exempt, bob and eve are recorded."""
    directory = made.root / "other"
    directory.mkdir()
    text = rule("ann", "exempt", 'users = ["ann"]') + rule("tom", "deny", 'users = ["tom"]')
    (directory / "a.toml").write_text(text)
    return directory


# -- replay ----------------------------------------------------------------------------


def test_replay_counts_and_lists(recuse: Any, other: Path) -> None:
    ran = recuse("policy", "replay", "--policy", str(other))
    assert ran.code == 0 and ran.err == ""
    lines = ran.out.splitlines()
    assert lines[0] == "4 sessions, of which 0 unchanged (0 exempt, 0 record, 0 refuse)"
    assert lines[1:4] == [
        "newly exempt:   2", "  by rule       ann 2", "  by host tag   (no tag) 2",
    ]  # fmt: skip
    rows = {line.split()[0]: line for line in lines if line.startswith(("s-", "l-"))}
    assert rows.keys() == {RECORDED, EXEMPT, REFUSED, FORWARD}
    assert rows[FORWARD].split()[-3:] == ["record", "exempt", "ann"]
    assert rows[EXEMPT].split()[-3:] == ["exempt", "record", "-"]


def test_replay_in_json(recuse: Any, other: Path) -> None:
    found = recuse("policy", "replay", "--policy", str(other), "--json").json
    assert found["sessions"] == 4 and found["unchanged"]["total"] == 0
    counts = [found[f"newly_{what}"]["count"] for what in ("exempt", "recorded", "refused")]
    assert counts == [2, 2, 0]
    assert found["newly_exempt"]["by_rule"] == {"ann": 2}
    assert {one["session"] for one in found["changes"]} == {RECORDED, EXEMPT, REFUSED, FORWARD}


def test_replay_in_a_window_of_time(recuse: Any, other: Path) -> None:
    window = ("--since", "2026-01-01T00:01:00Z", "--until", "2026-01-01T00:01:19Z")
    found = recuse("policy", "replay", "--policy", str(other), "--json", *window).json
    assert [one["session"] for one in found["changes"]] == [EXEMPT]
    assert found["since"] == "2026-01-01T00:01:00+00:00"


def test_replay_of_a_copied_ledger(recuse: Any, made: Made, other: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made.root / "var/lib/recuse/ledger", copy / "ledger")
    found = recuse("policy", "replay", "--policy", str(other), "--dir", str(copy), "--json").json
    assert found["sessions"] == 4


def test_replay_says_what_was_not_known(recuse: Any, made: Made, other: Path) -> None:
    (other / "b.toml").write_text(
        '[ask.x]\nprogram = ["/x"]\non_failure = "refuse"\non_timeout = "refuse"\n'
        + rule("b", "exempt", 'users = ["bob"]\nask = "x"')
    )
    ran = recuse("policy", "replay", "--policy", str(other))
    assert "1 session had facts that are not known" in ran.err
    assert " record?" in next(line for line in ran.out.splitlines() if line.startswith(EXEMPT))


def test_replay_under_a_faulty_policy_names_the_faults(recuse: Any, other: Path) -> None:
    (other / "b.toml").write_text('[[rule]]\nname = "x"\n')
    ran = recuse("policy", "replay", "--policy", str(other))
    assert ran.code == 4 and "b.toml:1" in ran.err and ran.out == ""
    assert recuse("policy", "replay", "--policy", "/nowhere").code == 6


@pytest.mark.parametrize("watched", [True, False])
def test_replay_tells_how_far_it_is_on_a_terminal_only(
    made: Made, other: Path, watched: bool
) -> None:
    script = (
        "import sys; from recuse import cli_whatif, cli;"
        "cli_whatif.TELL_SECONDS, cli_whatif.TELL_EVERY = 0.0, 1; sys.exit(cli.main(sys.argv[1:]))"
    )
    master, slave = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, "--root", str(made.root), "policy", "replay",
             "--policy", str(other), "--json"],
            stdout=subprocess.PIPE, stderr=slave if watched else subprocess.PIPE, check=True,
            env={**os.environ, "PYTHONPATH": str(AGENT)},
        )  # fmt: skip
        json.loads(done.stdout)
        if watched:
            assert select.select([master], [], [], 5)[0]
            assert b"replaying: 1 entry" in os.read(master, 65536)
        else:
            assert done.stderr == b""
    finally:
        os.close(master)
        os.close(slave)


# -- lint ------------------------------------------------------------------------------


def test_lint_of_a_good_policy(recuse: Any, other: Path) -> None:
    ran = recuse("policy", "lint", str(other))
    assert (ran.code, ran.out, ran.err) == (0, "nothing found in 2 rules\n", "")
    assert recuse("policy", "lint", str(other), "--json").json == {
        "ok": True, "rules": 2, "sessions": 0, "findings": [],
    }  # fmt: skip


def test_lint_names_findings_by_file_and_line(recuse: Any, other: Path) -> None:
    (other / "b.toml").write_text(
        rule("all", "require-record")
        + rule("gone", "exempt", 'users = ["x"]').replace("2031", "2021")
    )
    ran = recuse("policy", "lint", str(other))
    assert ran.code == 20 and "error: 2 findings in the policy" in ran.err
    path = str(other)
    assert ran.out.splitlines() == [
        f"{path}/a.toml:1: shadowed: rule 'ann' has no effect: require-record rule 'all'"
        f" ({path}/b.toml:1) matches whenever it does",
        f"{path}/b.toml:5: expired: rule 'gone' expired: its last day was 2021-12-31",
    ]
    found = recuse("policy", "lint", str(other), "--json", "--ignore", "expired")
    assert found.code == 20
    [finding] = found.json["findings"]
    assert (finding["code"], finding["rule"], finding["line"]) == ("shadowed", "ann", 1)
    assert (
        recuse("policy", "lint", str(other), "--ignore", "expired", "--ignore", "shadowed").code
        == 0
    )
    assert recuse("policy", "lint", str(other), "--ignore", "nonsense").code == 2


def test_lint_of_a_faulty_policy_is_a_fault(recuse: Any, other: Path) -> None:
    (other / "b.toml").write_text("rule = 3\n")
    assert recuse("policy", "lint", str(other)).code == 4


def test_lint_looks_at_the_sessions_of_the_last_month(
    recuse: Any, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_whatif, "MONTH_DAYS", 365000)
    ran = recuse("policy", "lint", str(other), "--sessions")
    assert ran.code == 20
    assert "exempts-much: rule 'ann' exempts 2 of 4 sessions (50.0 %)" in ran.out
    assert recuse("policy", "lint", str(other), "--sessions", "--percent", "50").code == 0
    assert recuse("policy", "lint", str(other)).code == 0


def test_lint_of_accounts_of_this_host(recuse: Any, other: Path) -> None:
    (other / "a.toml").write_text(
        rule("a", "deny", 'users = ["no-such-user"]') + rule("b", "deny", 'users = ["root"]')
        + rule("c", "deny", 'groups = ["no-such-group"]')
    )  # fmt: skip
    found = recuse("policy", "lint", str(other), "--accounts", "--json").json["findings"]
    assert [(one["code"], one["rule"]) for one in found] == [
        ("unknown-account", "a"), ("unknown-account", "c"),
    ]  # fmt: skip


PROGRAMS = [
    ("/usr/bin/true", 0, None), ("/nowhere/x", 0, "no such file"), ("/etc/passwd", 0, "no program"),
    ("{root}/x", 0o777, "can be changed by others than root"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "mode", "said"), PROGRAMS)
def test_lint_looks_at_programs(
    recuse: Any, made: Made, other: Path, path: str, mode: int, said: Any
) -> None:
    path = path.replace("{root}", str(made.root))
    if mode:
        Path(path).write_text("#!/bin/sh\n")
        Path(path).chmod(mode)
    stated = 'on_failure = "no-match"\non_timeout = "no-match"\n'
    (other / "b.toml").write_text(
        f'[ask.x]\nprogram = ["{path}"]\n{stated}' + rule("r", "deny", 'users = ["x"]\nask = "x"')
    )
    ran = recuse("policy", "lint", str(other))
    assert ran.code == (20 if said else 0)
    assert said is None or (f"{other}/b.toml:1: program: ask 'x':" in ran.out and said in ran.out)


# -- test ------------------------------------------------------------------------------

CASES = """
[defaults]
service = "sshd"
[[case]]
name = "ann is exempt"
facts = { user = "ann" }
at = 2026-03-02
expect = { verdict = "exempt", rule = "ann" }
[[case]]
name = "bob is exempt"
facts = { user = "bob" }
expect = { verdict = "exempt", rule = "ann" }
"""


def test_test_of_what_is_as_expected(recuse: Any, other: Path) -> None:
    path = other / "cases"
    path.write_text(CASES.partition('[[case]]\nname = "bob')[0])
    ran = recuse("policy", "test", "--policy", str(other), str(path))
    assert (ran.code, ran.out, ran.err) == (0, "1 of 1 cases as expected\n", "")


def test_test_shows_the_difference(recuse: Any, other: Path) -> None:
    path = other / "cases"
    path.write_text(CASES)
    ran = recuse("policy", "test", "--policy", str(other), str(path))
    assert ran.code == 21
    assert "the policy does not do what is expected in 1 of 2 cases" in ran.err
    assert ran.out.splitlines() == [
        f"{path}:9: bob is exempt",
        "  - verdict     exempt",
        "  + verdict     record",
        "  - rule        ann",
        "  + rule        (none)",
        f"    {other}/a.toml:1: rule 'ann' does not match:"
        " users: 'bob' (uid 1000) does not fit ann",
        "1 of 2 cases as expected",
    ]
    found = recuse("policy", "test", "--policy", str(other), str(path), "--json")
    assert found.code == 21
    assert (found.json["cases"], found.json["failed"], found.json["ok"]) == (2, 1, False)
    assert found.json["outcomes"][1]["differences"][1] == {
        "key": "rule", "expected": "ann", "actual": None,
    }  # fmt: skip


def test_test_of_faulty_expectations(recuse: Any, other: Path) -> None:
    path = other / "cases"
    path.write_text(CASES.replace("expect =", "expects ="))
    ran = recuse("policy", "test", "--policy", str(other), str(path))
    assert ran.code == 4 and f"{path}:8: unknown key 'expects'; did you mean 'expect'?" in ran.err
    assert recuse("policy", "test", "--policy", str(other), "/nowhere").code == 6
    assert recuse("policy", "test", "--policy", str(other)).code == 2


def test_example_is_called_as_it_says(recuse: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY / "contrib/policies")
    text = Path("tests/legal-counsel.test.toml").read_text()
    command = " ".join(line.strip("#\\ ") for line in text.splitlines()[2:4]).split()
    assert command[:2] == ["recuse", "policy"]
    ran = recuse(*command[1:])
    assert ran.code == 0 and "7 of 7 cases as expected" in ran.out
