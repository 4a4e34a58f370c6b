"""Logins with a shell or a command: what users see and what the ledger says of it."""

from __future__ import annotations

import re
import subprocess
import tempfile

import pytest
from accounts import event, export, find_bytes, rows, verify, watching
from host import ADDRESS, CLIENT, Host

HOMES = "/var/lib/recuse /var/lib/recuse-ship /var/lib/recuse-central /var/spool/recuse /run/recuse"


def test_ssh_with_terminal_is_recorded_to_the_last_byte(host: Host) -> None:
    with watching(host) as seen, host.login("alice", rows=31, columns=97) as terminal:
        terminal.expect(r"\$ $")
        assert b"31 97" in terminal.run("stty size")
        assert b"/bin/bash" in terminal.run("echo $SHELL")
        terminal.run("printf 'one\\tr\\303\\244ksm\\303\\266rg\\303\\245s\\n'")
        terminal.line("exit 5")
        assert terminal.wait() == 5
    row = seen.session
    assert row["user"] == "alice"
    assert row["verdict"] == "record"
    assert row["outcome"] == "recorded"
    assert row["kind"] == "shell"
    assert row["exit_status"] == 5
    assert row["service"] == "sshd"
    assert row["uid"] == 1000
    assert row["rule"] in (None, "everybody")
    assert CLIENT in str(row["source"])
    text = export(host, row["session"])
    assert "31 97" in text
    assert "räksmörgås" in text
    # Everything that was shown, but for our own notice, is in the recording.
    cast = export(host, row["session"], "cast")
    assert "r\\u00e4ksm" in cast or "räksm" in cast


def test_notice_is_shown_on_a_terminal_only(host: Host) -> None:
    with watching(host), host.login("alice", "true") as terminal:
        assert terminal.wait() == 0
    assert b"record" in terminal.output.lower()
    with watching(host):
        quiet = host.ssh("alice", "true")
    assert (quiet.stdout, quiet.stderr) == (b"", b"")


@pytest.mark.parametrize("user", ["alice", "dave"])
def test_command_keeps_streams_and_status(host: Host, user: str) -> None:
    with watching(host) as seen:
        result = host.ssh(user, "cat; echo oops >&2; exit 42", input=b"in\0\xff\r\n")
    assert (result.returncode, result.stdout, result.stderr) == (42, b"in\0\xff\r\n", b"oops\n")
    # An exempt shell is nobody's child but sshd's: only sshd knows its status.
    assert seen.session["exit_status"] == (None if user == "dave" else 42)
    # Nor is more kept of an exempt command than what tells whether it was this one.
    line = "cat; echo oops >&2; exit 42"
    assert seen.session["command"] == (None if user == "dave" else line)
    assert seen.session["outcome"] == ("exempt" if user == "dave" else "recorded")


def test_command_killed_by_a_signal_says_so_as_without_us(host: Host) -> None:
    with watching(host) as seen:
        result = host.ssh("alice", "kill -TERM $$")
    with watching(host):
        exempt = host.ssh("dave", "kill -TERM $$")
    assert result.returncode == exempt.returncode
    assert seen.session["outcome"] == "recorded"


def test_half_close_lets_the_command_finish(host: Host) -> None:
    with watching(host):
        result = host.ssh("alice", "sort; echo done", input=b"b\na\n")
    assert result.stdout == b"a\nb\ndone\n"


def test_big_output_arrives_whole(host: Host) -> None:
    with watching(host) as seen:
        result = host.ssh("alice", "head -c 20000000 /dev/zero | tr '\\0' x", timeout_seconds=60)
    assert result.stdout == b"x" * 20_000_000
    assert result.returncode == 0
    # Beyond capture_bytes it is counted and hashed: a gap, and said to be one.
    assert seen.session["outcome"] == "partial"


def test_hang_up_ends_the_session_and_is_recorded(host: Host) -> None:
    with watching(host) as seen, host.login("alice") as terminal:
        terminal.expect(r"\$ $")
        terminal.run("echo before-the-hang-up")
        terminal.process.kill()
    assert seen.session["outcome"] == "recorded"
    assert "before-the-hang-up" in export(host, seen.session["session"])


def test_each_channel_of_one_connection_is_a_session(host: Host) -> None:
    with tempfile.TemporaryDirectory(prefix="rc-", dir="/tmp") as short:
        control = f"ControlPath={short}/%C"
        keep = ["ControlMaster=yes", control]
        with (
            watching(host, sessions=3) as seen,
            subprocess.Popen(
                host.ssh_command("alice", "echo up; cat", options=keep),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            ) as master,
        ):
            assert master.stdin is not None and master.stdout is not None
            assert master.stdout.readline() == b"up\n"
            first = host.ssh("alice", "echo one", options=[control])
            second = host.ssh("alice", "echo two; exit 9", tty=True, options=[control])
            master.stdin.close()
            assert master.wait(60) == 0
    assert first.stdout == b"one\n"
    assert b"two" in second.stdout
    assert second.returncode == 9
    assert len({row["login"] for row in seen.sessions}) == 1
    assert [row["outcome"] for row in seen.sessions] == ["recorded"] * 3
    assert sorted(row["exit_status"] for row in seen.sessions) == [0, 0, 9]


def test_su_in_a_recorded_session_is_a_login_of_its_own(host: Host) -> None:
    with watching(host, sessions=2, logins=2) as seen, host.login("alice") as terminal:
        terminal.expect(r"\$ $")
        terminal.line("su - bob")
        terminal.expect("Password: ")
        terminal.line("pw-bob")
        terminal.expect("testhost% ")
        terminal.line("id -un; echo $SHELL; exit")
        terminal.expect("bob\r\n/usr/bin/zsh\r\n")
        terminal.expect(r"\$ $")
        terminal.line("exit 0")
        terminal.wait()
    outer = next(row for row in seen.sessions if row["user"] == "alice")
    inner = next(row for row in seen.sessions if row["user"] == "bob")
    assert inner["login"] != outer["login"]
    assert inner["kind"] == "nested"
    assert inner["service"] in ("su", "su-l")
    assert (outer["outcome"], inner["outcome"]) == ("recorded", "recorded")
    assert "/usr/bin/zsh" in export(host, outer["session"])


def test_what_is_typed_during_a_command_by_su_is_left_to_the_shell(host: Host) -> None:
    host.run("mkfifo", "-m", "666", "/tmp/gate", check=True)
    with watching(host, sessions=2, logins=2) as seen, host.login("alice") as terminal:
        terminal.expect(r"\$ $")
        terminal.line("su - bob -c 'echo up; cat /tmp/gate'")
        terminal.expect("Password: ")
        terminal.line("pw-bob")
        terminal.expect("up\r\n")
        terminal.line("echo ty''ped")
        terminal.expect("echo ty''ped\r\n")
        host.run("echo go >/tmp/gate", check=True)
        terminal.expect("\rtyped\r\n")
        terminal.line("exit 0")
        terminal.wait()
    host.path("/tmp/gate").unlink()
    inner = next(row for row in seen.sessions if row["user"] == "bob")
    assert (inner["kind"], inner["outcome"]) == ("nested", "recorded")


def test_sudo_in_a_recorded_session(host: Host) -> None:
    with watching(host, sessions=2, logins=2) as seen, host.login("alice") as terminal:
        terminal.expect(r"\$ $")
        terminal.line("sudo -i")
        terminal.expect("# $")
        terminal.line("whoami; exit")
        terminal.expect("root\r\n")
        terminal.expect(r"\$ $")
        terminal.line("exit 0")
        terminal.wait()
    inner = next(row for row in seen.sessions if row["service"].startswith("sudo"))
    assert inner["user"] == "root"
    assert inner["auid"] == 1000
    assert inner["outcome"] == "recorded"


def test_login_on_the_console_is_recorded(host: Host) -> None:
    with watching(host) as seen, host.terminal("setsid", "-c", "login", "carol") as terminal:
        terminal.expect("Password: ")
        terminal.line("pw-carol")
        terminal.expect("> $")
        terminal.line("echo console-$uid; exit")
        terminal.expect("console-[0-9]+\r\n")
        terminal.wait()
    row = seen.session
    assert row["service"] == "login"
    assert row["source"] in (None, {"kernel": None, "claimed": None}) or "kernel" in row["source"]
    assert row["outcome"] == "recorded"


@pytest.mark.parametrize("tty", [False, True], ids=["pipes", "terminal"])
def test_refused_user_reads_why_and_the_ledger_has_it(host: Host, tty: bool) -> None:
    cursor = host.cursor()
    result = host.ssh("erin", "echo never", tty=tty)
    assert result.returncode != 0
    assert b"never" not in result.stdout
    assert b"ask the service desk" in result.stdout + result.stderr
    entry = host.wait_journal(event("refused"), after=cursor)[0]
    assert entry["RECUSE_RULE"] == "erin-is-out"
    assert entry["RECUSE_USER"] == "erin"
    verify(host)


def test_exempt_session_leaves_a_stub_and_nothing_else(host: Host) -> None:
    marker = "geheim-4711"
    with watching(host) as seen, host.login("dave") as terminal:
        terminal.expect(r"\$ $")
        terminal.run(f"echo {marker}")
        shell = terminal.run("echo pid-$$-").decode()
        found = re.search(r"pid-(\d+)-", shell)
        assert found
        pid = int(found.group(1))
        # The process that sshd started is dave's own shell, in place of ours.
        assert host.run("readlink", f"/proc/{pid}/exe").stdout.strip() == "/usr/bin/dash"
        assert host.run("pgrep", "-u", "recuse").stdout == ""
        assert host.run("pgrep", "-f", "recuse-shell").stdout == ""
        descriptors = host.run("ls", "-l", f"/proc/{pid}/fd").stdout
        assert "recuse" not in descriptors and "socket" not in descriptors
        assert int(terminal.run("stty size >/dev/null; echo $(tty | wc -l)").strip()[-1:]) == 1
        terminal.line("exit 0")
        terminal.wait()
    row = seen.session
    assert row["verdict"] == row["outcome"] == "exempt"
    assert row["rule"] == "dave-is-exempt"
    assert row["reason"] == "handles patient data"
    assert row["owner"] == "privacy@example.org"
    assert row["started"] < row["ended"]
    assert row["bytes"] in (0, None)
    assert find_bytes(host, marker, HOMES) == []
    verify(host)


def test_user_with_nologin_is_left_alone(host: Host) -> None:
    result = host.ssh("nolan", "true")
    assert b"currently not available" in result.stdout
    assert result.returncode == 1


def test_other_programs_see_the_real_shell(host: Host) -> None:
    assert host.run("getent", "passwd", "alice").stdout.endswith(":/bin/bash\n")
    with watching(host):
        inside = host.ssh("alice", "getent passwd alice; echo $SHELL; echo $0")
    assert inside.stdout == (
        host.run("getent", "passwd", "alice").stdout.encode() + b"/bin/bash\nbash\n"
    )


def test_environment_is_as_without_us(host: Host) -> None:
    with watching(host):
        recorded = host.ssh("alice", "env", options=["SetEnv=LC_TEST=x"])
    names = {line.split(b"=")[0] for line in recorded.stdout.splitlines()}
    with watching(host):
        exempt = host.ssh("dave", "env", options=["SetEnv=LC_TEST=x"])
    assert names ^ {line.split(b"=")[0] for line in exempt.stdout.splitlines()} <= {b"_", b"SHLVL"}
    assert b"LC_TEST=x" in recorded.stdout
    assert b"RECUSE_SESSION=s-" in recorded.stdout
    assert f"SSH_CONNECTION={CLIENT} ".encode() in recorded.stdout
    assert f" {ADDRESS} 22".encode() in recorded.stdout


def test_root_can_log_in_and_is_recorded(host: Host) -> None:
    with watching(host) as seen:
        assert host.ssh("root", "id -u").stdout == b"0\n"
    assert seen.session["outcome"] == "recorded"


def test_cron_is_left_alone(host: Host) -> None:
    # systemd-run --user and cron open PAM sessions that are no logins.
    before = rows(host)
    host.run("systemctl", "start", "user@1001.service", check=True)
    host.run("systemctl", "stop", "user@1001.service", check=True)
    assert rows(host) == before


def test_everything_above_verifies(host: Host) -> None:
    verify(host)


def test_what_writes_elsewhere_in_a_session_is_not_said_to_be_recorded(host: Host) -> None:
    """The terminal has the lines that start it, and nothing of what it does."""
    with watching(host, sessions=4, logins=6) as seen, host.login("alice") as terminal:
        terminal.expect(r"\$ $")
        terminal.run("sudo id >/tmp/out 2>&1")
        terminal.run("sudo id")
        terminal.line("sudo -i")
        terminal.expect("# $")
        terminal.line("echo 'echo hidden-$((6*7))' | su - frank >/tmp/out; su - frank")
        terminal.expect(r"\$ $")
        terminal.line("exit 0")
        terminal.expect("# $")
        terminal.line("exit 0")
        terminal.expect(r"\$ $")
        terminal.line("exit 0")
        terminal.wait()
    assert {row["outcome"] for row in seen.sessions if row["user"] == "alice"} == {"recorded"}
    plain = [row for row in seen.sessions if row["kind"] == "none"]
    assert [(row["service"], row["outcome"]) for row in plain] == [
        ("sudo", "partial"),
        ("sudo", "recorded"),
    ]
    nested = [row for row in seen.sessions if row["kind"] == "nested"]
    assert [(row["user"], row["tty"] is None, row["outcome"]) for row in nested] == [
        ("frank", True, "partial"),
        ("frank", False, "recorded"),
    ]
    assert find_bytes(host, "hidden-42", "/var/spool/recuse", "/var/lib/recuse-central") == []
    verify(host)
