"""What `recuse doctor` says of a real host, sound and broken; it rehearses a login through PAM."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Dict, List, Tuple

import pytest
from accounts import event, export, rows, verify, watching
from host import Host

SERVICE = "/etc/pam.d/recuse"


def doctor(host: Host) -> Tuple[int, Dict[str, Dict[str, Any]]]:
    """Return the exit code and the checks by name."""
    result = host.run("recuse", "doctor", "--json")
    found = host.run("recuse", "doctor")
    assert found.returncode == result.returncode, found.stderr
    checks = json.loads(result.stdout)["checks"]
    return result.returncode, {check["name"]: check for check in checks}


def test_sound_host_has_no_fault_and_its_login_is_rehearsed(host: Host) -> None:
    code, checks = doctor(host)
    assert [check for check in checks.values() if check["state"] == "fail"] == []
    assert code == 0
    assert checks["pam-rehearsal"]["state"] == "ok", checks["pam-rehearsal"]
    assert "the agent answered a rehearsed login within" in checks["pam-rehearsal"]["words"]


def test_rehearsal_leaves_no_entry(host: Host) -> None:
    with watching(host, sessions=0, logins=0):
        before = host.json("recuse", "sync", "--json")
        assert doctor(host)[0] == 0
        assert host.json("recuse", "sync", "--json") == before


def test_rehearsal_leaves_no_entry_however_few_services_are_ignored(host: Host) -> None:
    with changed(host, "/etc/recuse/recuse.toml", "[session]\nignored_services = []\n"):
        host.run("systemctl", "reload", "recuse-agent", check=True)
        before = {row["login"] for row in rows(host)}
        assert doctor(host)[0] == 0
        assert {row["login"] for row in rows(host)} == before
    host.run("systemctl", "reload", "recuse-agent", check=True)


def test_recordings_are_compressed_by_what_is_installed(host: Host) -> None:
    """ISA-L in the agent's sandbox, zlib without it; a recording may be by both."""
    library = host.run("readlink -f /usr/lib/*/libisal.so.2", check=True).stdout.strip()
    said = {}
    with watching(host) as seen, host.login("alice") as terminal:
        terminal.expect(r"\$ $")
        try:
            for name in ("ISA-L", "zlib"):
                said[name] = doctor(host)[1]["compression"]["words"]
                terminal.run(f"echo by-{name}; seq 2000")
                host.run("recuse", "sync", check=True)
                pid = host.run("systemctl", "show", "-P", "MainPID", "recuse-agent").stdout.strip()
                is_there = library in host.read(f"/proc/{pid}/maps")
                assert is_there == (name == "ISA-L")
                if is_there:
                    host.run("mv", library, f"{library}.away", check=True)
                    host.run("systemctl", "restart", "recuse-agent", check=True)
        finally:
            host.run("mv", f"{library}.away", library, check=True)
            host.run("systemctl", "restart", "recuse-agent", check=True)
        terminal.line("exit")
        terminal.wait()
    assert said["ISA-L"] == "recordings are compressed by ISA-L"
    assert said["zlib"].startswith("recordings are compressed by zlib; ISA-L takes a quarter")
    session = seen.session["session"]
    segments = json.loads(host.run("recuse", "show", session, "--json", check=True).stdout)
    blobs = host.path("/var/lib/recuse-central/blobs/sha256")
    # The byte that names a system: ISA-L knows none (255), zlib knows its own (3).
    systems = [
        (blobs / one["blob"][:2] / one["blob"]).read_bytes()[9] for one in segments["segments"]
    ]
    assert systems[0] == systems[-1] == 255 and 3 in systems, systems
    shown = export(host, session)
    assert shown.index("by-ISA-L") < shown.index("by-zlib") and shown.count("\n2000\n") == 2
    verify(host)


def test_service_lets_in_root_alone(host: Host) -> None:
    script = "import pam; p = pam.PamAuthenticator(); print(p.authenticate('root', '', 'recuse'))"
    assert host.run("python3", "-c", script, check=True).stdout == "True\n"
    command = ("runuser", "-u", "alice", "--", "python3", "-c", script)
    assert host.run(*command, check=True).stdout == "False\n"


def test_silent_agent_is_named_and_nothing_is_enabled(host: Host) -> None:
    host.run("systemctl stop recuse-agent.socket recuse-control.socket recuse-agent", check=True)
    host.run("rm", "-f", "/run/recuse/host.sock", "/run/recuse/control.sock", check=True)
    try:
        code, checks = doctor(host)
        assert code == 11
        found = checks["pam-rehearsal"]
        assert (found["state"], found["blocks"]) == ("fail", True)
        assert "the recording agent does not answer" in found["words"]
        assert checks["agent"]["state"] == checks["host.sock"]["state"] == "fail"
        refused = host.run("recuse", "enable")
        assert refused.returncode == 11 and "pam-rehearsal" in refused.stderr
    finally:
        host.run("systemctl start recuse-agent.socket recuse-control.socket", check=True)
    assert doctor(host)[0] == 0


def test_agent_that_hangs_is_named(host: Host) -> None:
    host.run("systemctl", "kill", "--kill-whom=main", "--signal=STOP", "recuse-agent", check=True)
    try:
        _, checks = doctor(host)
    finally:
        host.run(
            "systemctl", "kill", "--kill-whom=main", "--signal=CONT", "recuse-agent", check=True
        )
    assert checks["pam-rehearsal"]["state"] == "fail"
    assert "the recording agent does not answer" in checks["pam-rehearsal"]["words"]


@contextmanager
def changed(host: Host, name: str, text: str) -> Iterator[None]:
    before = host.read(name)
    host.write(name, text)
    try:
        yield
    finally:
        host.write(name, before)


BROKEN = [
    pytest.param("auth required pam_deny.so\n", "PAM does not let root", id="auth"),
    pytest.param("@MODULE@", "PAM cannot load pam_recuse.so", id="module"),
    pytest.param("@REFUSED@", "was refused", id="refused"),
]


@pytest.mark.parametrize(("text", "words"), BROKEN)
def test_broken_service_is_named(host: Host, text: str, words: str) -> None:
    sound = host.read(SERVICE)
    text = text.replace("@MODULE@", sound.replace("pam_recuse.so", "pam_nowhere.so"))
    text = text.replace("@REFUSED@", sound + "session required pam_deny.so\n")
    with changed(host, SERVICE, text):
        code, checks = doctor(host)
    assert code == 11
    assert checks["pam-rehearsal"]["state"] == "fail"
    assert words in checks["pam-rehearsal"]["words"]


def wired(told: Dict[str, Dict[str, Any]]) -> Tuple[str, str]:
    return tuple("".join(k[0] for k, v in told[at].items() if v) for at in ("before", "after"))  # type: ignore[return-value]


def test_disabling_and_enabling_are_entered_at_once(host: Host) -> None:
    """Both are entries of the ledger, events of the journal, and no fault."""
    cursor = host.cursor()
    host.run("recuse", "disable", check=True)
    host.run("recuse", "enable", check=True)
    found = changes(host)[-2:]
    assert [(one["what"], *wired(one["detail"])) for one in found] == [
        ("disabled", "np", ""),
        ("enabled", "", "np"),
    ]
    for kind, after in (("disabled", "no"), ("enabled", "yes")):
        (told,) = host.journal(event(kind), after=cursor)
        assert told["RECUSE_AFTER"] == f"disabled no, nsswitch {after}, pam {after}"
    verify(host)


def test_file_that_disables_is_entered_at_a_reload(host: Host) -> None:
    before = len(changes(host))
    for command in ("touch", "rm"):
        host.run(command, "/etc/recuse/disabled", check=True)
        cursor = host.cursor()
        host.run("systemctl", "reload", "recuse-agent", check=True)
        host.wait_journal(event("reloaded"), after=cursor)
    found = changes(host)[before:]
    assert [wired(one["detail"]) for one in found] == [("np", "dnp"), ("dnp", "np")]


def test_host_that_hangs_can_be_disabled_and_its_agent_finds_out(host: Host) -> None:
    before = len(changes(host))
    kill = ("systemctl", "kill", "--kill-whom=main")
    host.run(*kill, "--signal=STOP", "recuse-agent", check=True)
    try:
        host.run("recuse", "disable", check=True)
    finally:
        cursor = host.cursor()
        host.run(*kill, "--signal=CONT", "recuse-agent", check=True)
    host.wait_journal(event("disabled"), after=cursor)
    host.run("recuse", "enable", check=True)
    assert [one["what"] for one in changes(host)[before:]] == ["disabled", "enabled"]


def changes(host: Host) -> List[Dict[str, Any]]:
    """List what the ledger says of how logins are wired."""
    script = """
import json
from recuse import records
from recuse.ledger import read_ledger
found = map(records.parse, read_ledger("/var/lib/recuse/ledger").entries())
kept = [e.data["unmapped"]["recuse"] for e in found if e.kind == "recovered"]
print(json.dumps([one for one in kept if one["what"] in ("enabled", "disabled")]))
"""
    found: List[Dict[str, Any]] = json.loads(host.run("python3", "-c", script, check=True).stdout)
    return found
