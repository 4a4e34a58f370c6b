"""Leading a host's logins through recuse and undoing it, on the host that test_checkup makes up."""

from __future__ import annotations

import errno
import itertools
import os
import stat
from typing import Callable

import pytest
import test_checkup
from hypothesis import given
from hypothesis import strategies as st
from test_checkup import BREAKING, COMMON, NSSWITCH, OURS, FakeHost, no_agent
from test_faults import SHORT, Disk, failing

from recuse import checkup, hostsetup
from recuse.checkup import Check, Machine
from recuse.errors import AgentUnreachable, DoctorFound
from recuse.hostsetup import add_service, passwd_services, remove_service

host = test_checkup.host

# nsswitch.conf


@pytest.mark.parametrize(
    "before, after",
    [
        (b"passwd: files\n", b"passwd: recuse files\n"),
        (b"passwd:files sss", b"passwd:recuse files sss"),
        (
            b" passwd :\tfiles [NOTFOUND=return] sss\n",
            b" passwd :\trecuse files [NOTFOUND=return] sss\n",
        ),
        (b"passwd: files # recuse\n", b"passwd: recuse files # recuse\n"),
        (b"a: b\npasswd: x\nc: d\n", b"a: b\npasswd: recuse x\nc: d\n"),
    ],
)
def test_adding_and_removing_the_service_are_inverse(before: bytes, after: bytes) -> None:
    assert add_service(before) == after
    assert add_service(after) == after
    assert remove_service(after) == before
    assert remove_service(before) == before


def test_misplaced_service_is_moved_to_the_front() -> None:
    assert add_service(b"passwd: files recuse [NOTFOUND=continue] sss\n") == (
        b"passwd: recuse files sss\n"
    )
    assert passwd_services(b"passwd: files [SUCCESS=merge] sss # x\n") == ["files", "sss"]
    assert passwd_services(b"group: files\n") is None


@given(
    st.lists(
        st.sampled_from(["files", "sss", "systemd", "[NOTFOUND=return]", "recused", "ldap"]),
        min_size=1,
        max_size=4,
    ).filter(lambda words: words[0][0] != "["),
    st.sampled_from([" ", "\t", "        ", ""]),
    st.sampled_from(["", "\n", " # recuse\n", "\ngroup: recuse files\n"]),
)
def test_any_line_comes_back_to_the_byte(words: list[str], gap: str, end: str) -> None:
    text = ("passwd:%s%s%s" % (gap, " ".join(words), end)).encode()
    wired = add_service(text)
    assert passwd_services(wired) is not None and passwd_services(wired)[0] == "recuse"  # type: ignore[index]
    assert remove_service(wired) == text


# enable and disable


def test_enable_wires_pam_then_names_and_disable_restores_every_byte(host: FakeHost) -> None:
    before = host.tree()
    change = hostsetup.enable(host.machine())
    assert len(change.done) == 2
    assert "passwd:         recuse files systemd   # local first\n" in host.read(
        "etc/nsswitch.conf"
    )
    assert host.read("etc/pam.d/common-session").endswith(OURS)
    assert host.read("etc/nsswitch.conf.before-recuse") == NSSWITCH.decode()
    assert hostsetup.nss_enabled(host.machine()) and hostsetup.pam_enabled(host.machine())
    hostsetup.disable(host.machine())
    assert host.tree() == before


def test_enable_and_disable_twice_change_nothing_more(host: FakeHost) -> None:
    hostsetup.enable(host.machine())
    wired = host.tree()
    assert hostsetup.enable(host.machine()).done == ()
    assert host.tree() == wired
    hostsetup.disable(host.machine())
    plain = host.tree()
    assert hostsetup.disable(host.machine()).done == ()
    assert host.tree() == plain


def test_dry_run_shows_and_does_nothing(host: FakeHost) -> None:
    before = host.tree()
    change = hostsetup.enable(host.machine(), dry_run=True)
    assert "+passwd:         recuse files systemd" in change.diff
    assert "pam-auth-update --package --enable recuse" in change.done
    assert host.tree() == before
    hostsetup.enable(host.machine())
    wired = host.tree()
    assert "-passwd:         recuse files" in hostsetup.disable(host.machine(), dry_run=True).diff
    assert host.tree() == wired


def test_mode_of_nsswitch_is_kept(host: FakeHost) -> None:
    (host.root / "etc/nsswitch.conf").chmod(0o640)
    hostsetup.enable(host.machine())
    assert stat.S_IMODE((host.root / "etc/nsswitch.conf").stat().st_mode) == 0o640


def test_pam_refusing_leaves_the_host_as_it_was(host: FakeHost) -> None:
    before = host.tree()
    host.pam_fails = True
    with pytest.raises(DoctorFound, match="Local modifications"):
        hostsetup.enable(host.machine())
    assert host.tree() == before


def test_pam_doing_half_is_rolled_back(host: FakeHost) -> None:
    before = host.tree()
    host.pam_half = True
    with pytest.raises(DoctorFound):
        hostsetup.enable(host.machine())
    assert host.tree() == before


def test_failure_after_the_last_change_is_rolled_back(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = host.tree()
    real: Callable[[Machine], Check] = checkup._check_nsswitch
    calls = []

    def second_time_bad(machine: Machine) -> Check:
        calls.append(machine.read("/etc/nsswitch.conf"))
        return real(machine) if len(calls) == 1 else Check("nsswitch", "fail", "it broke")

    monkeypatch.setattr(checkup, "_check_nsswitch", second_time_bad)
    with pytest.raises(DoctorFound, match="it broke"):
        hostsetup.enable(host.machine())
    assert calls[1] != NSSWITCH
    assert host.tree() == before


@pytest.mark.parametrize(
    ("code", "length"),
    [(errno.EIO, 1), (errno.ENOSPC, 1 << 30), (SHORT, 1)],
    ids=["error", "full", "short"],
)
def test_disk_that_fails_at_any_call_leaves_every_file_whole(
    host: FakeHost, code: int, length: int
) -> None:
    plain = host.tree()
    hostsetup.enable(host.machine())
    wired = host.tree()
    hostsetup.disable(host.machine())

    def check_whole() -> None:
        now = host.tree()
        assert all(now[name] in (plain[name], wired[name]) for name in plain)
        assert {name for name in now if not name.endswith(".new")} <= wired.keys()

    for number in itertools.count(1):
        calls = []
        for change in (hostsetup.enable, hostsetup.disable):
            disk = Disk(number, length, code)
            with failing(disk):
                try:
                    change(host.machine())
                except DoctorFound as error:
                    assert os.strerror(code).lower() in error.message.lower() and error.hint
                    if change is hostsetup.enable and "half" not in error.message:
                        assert host.tree() == plain
            check_whole()
            change(host.machine())
            assert host.tree() == (wired if change is hostsetup.enable else plain)
            calls += disk.failed
        if not calls:
            break
    assert number > (2 if code == SHORT else 10)


def test_disable_undoes_half_states(host: FakeHost) -> None:
    before = host.tree()
    host.write("etc/nsswitch.conf", add_service(NSSWITCH).decode())
    assert hostsetup.disable(host.machine()).done == ("recuse out of passwd of /etc/nsswitch.conf",)
    assert host.tree() == before
    host.write("etc/pam.d/common-session", COMMON + OURS)
    assert hostsetup.disable(host.machine()).done == ("pam-auth-update --package --disable recuse",)
    assert host.tree() == before


def test_disable_on_a_broken_host_takes_the_line_out_itself(host: FakeHost) -> None:
    before = host.tree()
    hostsetup.enable(host.machine())
    host.pam_fails = True
    host.agent_error = AgentUnreachable("no agent")
    for path in ("usr/lib/recuse/recuse-shell", "lib/x86_64-linux-gnu/libnss_recuse.so.2"):
        (host.root / path).unlink()
    for one in (host.root / "run").rglob("*.sock"):
        one.unlink()
    change = hostsetup.disable(host.machine())
    assert len(change.warnings) == 2 and "was taken out" in change.warnings[0]
    assert host.tree() == before


def test_disable_keeps_what_somebody_edited_meanwhile(host: FakeHost) -> None:
    hostsetup.enable(host.machine())
    host.write("etc/nsswitch.conf", host.read("etc/nsswitch.conf") + "hosts: files\n")
    hostsetup.disable(host.machine())
    assert host.read("etc/nsswitch.conf") == NSSWITCH.decode() + "hosts: files\n"


def test_disable_names_a_module_called_by_hand(host: FakeHost) -> None:
    host.write("etc/pam.d/vsftpd", OURS)
    change = hostsetup.disable(host.machine())
    assert "/etc/pam.d/vsftpd" in change.warnings[0]
    assert host.read("etc/pam.d/vsftpd") == OURS


def test_enable_only_for_root() -> None:
    with pytest.raises(Exception, match="only root") as caught:
        hostsetup.enable(Machine(uid=1000))
    assert caught.value.exit_code == 7  # type: ignore[attr-defined]


@pytest.mark.parametrize("case", BREAKING)
def test_enable_refuses_what_would_break_logins(host: FakeHost, case: str) -> None:
    spoil, name, _ = BREAKING[case]
    spoil(host)
    before = host.tree()
    with pytest.raises(DoctorFound, match="logins would break.*%s: " % name) as caught:
        hostsetup.enable(host.machine())
    assert caught.value.exit_code == 11
    assert host.tree() == before
    assert not [argv for argv in host.ran if "pam-auth-update" in argv[0]]


def test_nscd_that_leaves_passwd_alone_is_fine(host: FakeHost) -> None:
    host.write("run/nscd/socket", "")
    host.write("etc/nscd.conf", "\tenable-cache\t\tpasswd\t\tno\n")
    assert hostsetup.enable(host.machine()).done


def test_agent_is_not_needed_where_nothing_is_booted(host: FakeHost) -> None:
    no_agent(host)
    (host.root / "run/systemd/system").rmdir()
    assert hostsetup.enable(host.machine()).done
