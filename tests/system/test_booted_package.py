"""What installing, removing and purging the packages does to a host, and what it does not."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

import pytest
from accounts import enable, rows, verify, watching
from host import Host

MULTIARCH = subprocess.run(
    ["dpkg-architecture", "-qDEB_HOST_MULTIARCH"], check=True, capture_output=True, text=True
).stdout.strip()
WIRED = (
    "/etc/nsswitch.conf",
    "/etc/pam.d/common-session",
    "/etc/pam.d/common-session-noninteractive",
)
EXPECTED = {
    "/usr/lib/recuse/recuse-shell": "6755 recuse:recuse",
    "/usr/lib/recuse/recuse-agent": "755 root:root",
    "/usr/lib/recuse/recuse-ship": "755 root:root",
    "/usr/lib/recuse/recuse-consult": "755 root:root",
    "/usr/lib/recuse/recuse-notify": "755 root:root",
    "/usr/bin/recuse": "755 root:root",
    "/usr/bin/recuse-collector": "755 root:root",
    f"/usr/lib/{MULTIARCH}/security/pam_recuse.so": "644 root:root",
    f"/usr/lib/{MULTIARCH}/libnss_recuse.so.2": "644 root:root",
    "/usr/lib/python3/dist-packages/recuse/cli.py": "644 root:root",
    "/etc/pam.d/recuse": "644 root:root",
    "/etc/apparmor.d/usr.lib.recuse.recuse-shell": "644 root:root",
    "/usr/share/selinux/packages/recuse.cil": "644 root:root",
    "/etc/recuse": "755 root:root",
    "/etc/recuse/recuse.toml": "644 root:root",
    "/etc/recuse/policy.d": "755 root:root",
    "/etc/recuse/approval.d": "755 root:root",
    "/etc/recuse/approvers": "644 root:root",
    "/etc/recuse/collector-approvers": "644 root:root",
    "/etc/pam.d/recuse-approve": "644 root:root",
    "/etc/recuse/notify.toml": "640 root:recuse-notify",
    "/etc/recuse/notify.d": "2750 root:recuse-notify",
    "/run/recuse": "755 root:root",
    "/run/recuse/host.sock": "660 root:recuse",
    "/run/recuse/control.sock": "666 root:root",
    "/run/recuse/consult.sock": "600 root:root",
    "/var/lib/recuse": "2750 root:recuse-ship",
    "/var/lib/recuse-ship": "750 recuse-ship:recuse-ship",
    "/var/lib/recuse-notify": "700 recuse-notify:recuse-notify",
    "/var/lib/recuse-central": "750 recuse-ship:recuse-ship",
    "/var/lib/recuse-collector": "750 recuse-collector:recuse-collector",
    "/var/spool/recuse": "755 root:root",
    "/var/spool/recuse/live": "700 root:root",
    "/var/spool/recuse/out": "750 root:recuse-ship",
    "/var/spool/recuse/orphan": "700 recuse:recuse",
    "/var/spool/recuse/quarantine": "700 root:root",
}
PAGES = (
    "recuse.1 recuse-agent.8 recuse-collector.8 recuse.toml.5 recuse-policy.5 pam_recuse.8"
    " libnss_recuse.8 recuse-shell.8 recuse-consult.8 recuse-approval.5"
    " recuse-notify.8 recuse-notify.toml.5"
    " recuse-policytest.5"
).split()


@pytest.fixture(scope="module")
def bare() -> Iterator[Host]:
    """A host that has never seen our packages."""
    with Host(packages=False) as host:
        yield host


@pytest.fixture(scope="module")
def before(bare: Host) -> dict[str, str]:
    """The wiring of the host before anything was installed; installs the packages."""
    wiring = {name: bare.read(name) for name in WIRED}
    bare.install()
    return wiring


@pytest.fixture
def installed(bare: Host, before: dict[str, str]) -> Host:
    """The host with the packages installed and not enabled, whatever another test did to it."""
    if bare.run("dpkg-query -W -f '${db:Status-Status}' recuse").stdout != "installed":
        bare.install()
    bare.run("recuse", "disable", check=True)
    return bare


def record_one(host: Host) -> None:
    """Enable recuse, and have a session recorded."""
    enable(host)
    with watching(host) as seen:
        host.ssh("alice", "true")
    assert seen.session["outcome"] == "recorded"


def wiring(host: Host) -> dict[str, str]:
    return {name: host.read(name) for name in WIRED}


def test_installing_changes_no_login(bare: Host, before: dict[str, str]) -> None:
    assert wiring(bare) == before
    result = bare.ssh("alice", "ps -o comm= -p $PPID; env | grep RECUSE_")
    assert result.stdout.strip() == b"sshd"
    assert bare.run("systemctl is-system-running").stdout == "running\n"
    # Nobody has asked the agent anything: there is not even a ledger yet.
    assert bare.run("ls", "-A", "/var/lib/recuse").stdout == ""


@pytest.mark.parametrize("name", EXPECTED)
def test_mode_and_owner(bare: Host, before: dict[str, str], name: str) -> None:
    shown = bare.run("stat", "-c", "%a %U:%G", name, check=True).stdout.strip()
    assert shown == EXPECTED[name]


def test_dpkg_finds_every_file_as_it_was_packaged(bare: Host, before: dict[str, str]) -> None:
    shown = bare.run("dpkg", "--verify", "recuse", "recuse-collector", "python3-recuse")
    assert shown.stdout == ""


@pytest.mark.parametrize("page", PAGES)
def test_manual_page(bare: Host, before: dict[str, str], page: str) -> None:
    name, section = page.rsplit(".", 1)
    assert bare.run("man", "-w", section, name).stdout.endswith(f"{page}.gz\n")


def test_shell_is_a_known_one(bare: Host, before: dict[str, str]) -> None:
    assert "recuse-shell" not in bare.read("/etc/shells")


def test_units_are_confined(bare: Host, before: dict[str, str]) -> None:
    units = "recuse-agent recuse-ship recuse-consult recuse-notify recuse-coverage recuse-collector"
    for unit in units.split():
        shown = bare.run("systemd-analyze", "security", "--no-pager", f"{unit}.service").stdout
        level = float(shown.rsplit("exposure level", 1)[1].split(":")[1].split()[0])
        assert level <= 3.0, shown


def test_enable_then_disable_leaves_no_trace(installed: Host, before: dict[str, str]) -> None:
    record_one(installed)
    assert wiring(installed) != before
    installed.run("recuse", "enable", check=True)
    pam = [line for line in installed.read(WIRED[1]).splitlines() if line and line[0] != "#"]
    assert "pam_recuse.so" in pam[-1]
    installed.run("recuse", "disable", check=True)
    assert wiring(installed) == before
    installed.run("recuse", "disable", check=True)
    assert wiring(installed) == before


def test_removal_undoes_enable(installed: Host, before: dict[str, str]) -> None:
    installed.run("recuse", "enable", check=True)
    installed.run("dpkg", "--remove", "recuse", check=True)
    assert wiring(installed) == before
    assert installed.ssh("alice", "exit 3").returncode == 3
    assert "recuse-shell" not in installed.read("/etc/shells")
    assert installed.run("systemctl is-system-running").stdout == "running\n"


def test_removal_works_with_a_broken_command(installed: Host, before: dict[str, str]) -> None:
    installed.run("recuse", "enable", check=True)
    installed.write("/usr/bin/recuse", "#!/bin/sh\nexit 1\n", mode=0o755)
    installed.run("dpkg", "--remove", "recuse", check=True)
    assert wiring(installed) == before
    assert installed.ssh("alice", "exit 3").returncode == 3


@contextlib.contextmanager
def selinux(host: Host, fails: str = "", modules: str = "") -> Iterator[str]:
    """Have a configuration of SELinux; give the path of tools that say what they do."""
    for name in ("selinuxenabled", "semodule", "restorecon"):
        script = f"#!/bin/sh\n[ \"$1\" != --list ] || exec echo {modules}\n"
        script += f"echo {name} $* >>/root/bin/ran\nexit {int(name == fails)}\n"
        host.write(f"/root/bin/{name}", script, mode=0o755)
    host.write("/etc/selinux/config", "SELINUX=enforcing\nSELINUXTYPE=default\n")
    try:
        yield "PATH=/root/bin:$PATH"
    finally:
        host.run("rm -rf /root/bin /etc/selinux /var/lib/selinux", check=True)


@pytest.mark.parametrize("fails", ["semodule", "restorecon"])
def test_selinux_that_does_not_take_the_module_keeps_nobody_from_an_upgrade(
    installed: Host, fails: str
) -> None:
    """Its tools are not here; restorecon fails at a recording that is being made."""
    with selinux(installed, fails) as path:
        installed.run("mkdir -p /var/lib/selinux/default/active", check=True)
        result = installed.run(f"{path} sh /var/lib/dpkg/info/recuse.postinst configure 0")
        assert result.returncode == 0 and "recuse: " in result.stderr, result
        assert "recuse doctor" in result.stderr
        ran = installed.read("/root/bin/ran")
        assert ("restorecon -RF /var/spool/recuse\n" in ran) == (fails == "restorecon"), ran


@pytest.mark.parametrize("modules", ["", "recuse"], ids=["new", "known"])
def test_a_policy_of_selinux_that_comes_later_gets_the_module(
    installed: Host, modules: str
) -> None:
    """And the sockets their labels, which needs new ones; a policy that goes is asked nothing."""
    enable(installed)
    made = "stat -c %i /run/recuse/*.sock; systemctl show -P MainPID recuse-agent"
    before_it = installed.run(made, check=True).stdout
    control = "Package: policy\nVersion: 1\nArchitecture: all\nMaintainer: x\nDescription: x\n"
    installed.write("/root/policy/DEBIAN/control", control)
    installed.write("/root/policy/var/lib/selinux/default/README", "as it is packaged")
    came = "#!/bin/sh\necho policy $1 >>/root/bin/ran\nmkdir /var/lib/selinux/default/active\n"
    gone = "#!/bin/sh\nrm -rf /var/lib/selinux/default/active\n"
    installed.write("/root/policy/DEBIAN/postinst", came, mode=0o755)
    installed.write("/root/policy/DEBIAN/prerm", gone, mode=0o755)
    installed.run("dpkg-deb --build /root/policy", check=True)
    with watching(installed) as seen, installed.login("alice") as terminal:
        terminal.expect(r"[$] $")
        with selinux(installed, modules=modules) as path:
            installed.run(f"{path} dpkg --install /root/policy.deb", check=True)
            ran = installed.read("/root/bin/ran").splitlines()
            assert ran[:3] == [
                "policy configure",
                "selinuxenabled",
                "semodule --install /usr/share/selinux/packages/recuse.cil",
            ]
            assert {"restorecon -RF /usr/lib/recuse", "restorecon -RF /run/recuse"} < set(ran[3:])
            installed.run(f"{path} dpkg --purge policy", check=True)
            assert installed.read("/root/bin/ran").splitlines() == ran
        terminal.line("exit")
        terminal.wait()
    assert seen.session["outcome"] == "recorded"
    with watching(installed) as seen:
        installed.ssh("alice", "true")
    assert seen.session["outcome"] == "recorded"
    assert (installed.run(made).stdout == before_it) == bool(modules)
    assert installed.run("dpkg --audit").stdout == ""
    installed.run("rm -r /root/policy /root/policy.deb", check=True)


def test_installing_again_goes_on_with_the_ledger(installed: Host) -> None:
    record_one(installed)
    known = rows(installed)
    installed.run("dpkg", "--remove", "recuse", check=True)
    installed.install()
    record_one(installed)
    assert rows(installed)[:-1] == known
    verify(installed)


def test_purge_takes_the_module_out_of_selinux(installed: Host) -> None:
    record_one(installed)
    with selinux(installed, modules="recuse") as path:
        installed.run(f"{path} dpkg --purge recuse", check=True)
        assert installed.read("/root/bin/ran").splitlines() == [
            "selinuxenabled",
            "semodule --remove recuse",
            "restorecon -RF /var/lib/recuse-kept",
        ]


def test_purge_leaves_evidence_aside_and_nothing_else(
    installed: Host, before: dict[str, str]
) -> None:
    record_one(installed)
    said = installed.run(
        "dpkg --purge recuse recuse-collector python3-recuse 2>&1", check=True
    ).stdout
    assert "/var/lib/recuse-kept/" in said
    assert wiring(installed) == before
    left = installed.run(
        "find / -xdev -path /root -prune -o -path /proc -prune -o -path /var/log -prune"
        " -o -path /var/lib/systemd -prune -o -path /var/lib/recuse-kept -prune"
        " -o -name '*recuse*' -print"
    ).stdout.split()
    assert left == ["/var/lib/recuse-collector"]
    assert installed.run("find /var/lib/recuse-kept -name checkpoint").stdout.count("\n") >= 1
    assert installed.run("find /var/lib/recuse-kept -name '*.key'").stdout == ""
    assert installed.ssh("alice", "exit 3").returncode == 3
