"""What recording on this host depends on, looked at piece by piece, and what is wrong with it.

It reads and tries; of a host it changes nothing. `prerequisites` are what must hold before logins
are led to recuse, `look` is all of it.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import grp
import json
import os
import pwd
import re
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Callable, Mapping, Optional, Sequence
from urllib.parse import urlsplit

from recuse import amounts, notifyconf, rehearsal, wiring
from recuse.cast import printable
from recuse.control import ask
from recuse.errors import ConfigError, PolicyError, RecuseError
from recuse.wiring import DISABLED, MODULE, NSSWITCH, SHELL, PamLine, passwd_services

PROFILE = "/usr/share/pam-configs/recuse"
LIBRARY = "libnss_recuse.so.2"
REINSTALL = "reinstall the package recuse"
REHEARSAL = "/etc/pam.d/" + rehearsal.SERVICE
REHEARSAL_FALLBACK = "/usr/lib/recuse/rehearsal-fallback"
REHEARSAL_SLOW_MS = 1000  # half of the time that a login waits for the agent
# Every service that starts logins; those of a host without the file are left out.
LOGIN_SERVICES = ("sshd", "login", "su", "su-l", "sudo", "sudo-i")
# Where a module of PAM or the name service may be: Debian, RHEL, others.
PAM_DIRS = (
    "/lib/*/security",
    "/usr/lib/*/security",
    "/lib64/security",
    "/usr/lib64/security",
    "/lib/security",
    "/usr/lib/security",
)
LIB_DIRS = (
    "/lib/*-linux-gnu*",
    "/usr/lib/*-linux-gnu*",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
)
# The module of SELinux, one context that no policy knows without it (with a level, and as where a
# policy has no levels), and what it has most to be right about: what sshd runs and connects to.
SELINUX_MODULE = "/usr/share/selinux/packages/recuse.cil"
SELINUX_CONTEXTS = (
    "system_u:object_r:recuse_runtime_t:s0",
    "system_u:object_r:recuse_runtime_t",
)
SELINUX_TYPES = {
    SHELL: "shell_exec_t",
    "/usr/lib/recuse/recuse-agent": "recuse_agent_exec_t",
    "/run/recuse/host.sock": "recuse_runtime_t",
    "/var/spool/recuse/orphan": "recuse_orphan_t",
}
# AppArmor, and where an administrator adds to the profile of the one process that recuse.toml sends
# to other paths.
APPARMOR = "/sys/kernel/security/apparmor"
APPARMOR_LOCAL = "/etc/apparmor.d/local/usr.lib.recuse.recuse-ship"
# Shells of users that are not meant to log in.
_NO_SHELLS = ("nologin", "false", "true", "sync", "halt", "shutdown", "git-shell")
MAX_SHELLS = 32
BACKLOG_WARN_SECONDS = 15 * 60
BACKLOG_WARN_BYTES = 256 * 1024 * 1024

# PAM_OPEN_ERR, PAM_SYMBOL_ERR, PAM_MODULE_UNKNOWN
_PAM_NO_MODULE = (1, 2, 28)

_FS_IOC_GETFLAGS = 0x80086601
_FS_IOC_SETFLAGS = 0x40086602
_FS_APPEND_FL = 0x20


@dataclass(frozen=True)
class Check:
    """One thing looked at. `blocks`: enabling is refused while it fails."""

    name: str
    state: str  # ok, warn, fail
    words: str
    hint: Optional[str] = None
    blocks: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Ran:
    """What a program answered; status -1: it could not be started or took too long."""

    status: int
    out: str
    err: str


NO_BACKLOG = Check("backlog", "ok", "nothing waits to be shipped")


def run_program(argv: Sequence[str]) -> Ran:
    env = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C",
        "DEBIAN_FRONTEND": "noninteractive",
    }
    try:
        done = subprocess.run(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        return Ran(-1, "", "%s: %s" % (argv[0], e))
    return Ran(
        done.returncode,
        done.stdout.decode("utf-8", "replace"),
        done.stderr.decode("utf-8", "replace"),
    )


def reach(url: str, timeout_seconds: float = 3.0) -> Optional[str]:
    """Open a connection to the server of `url`; None, or why it cannot be."""
    parts = urlsplit(url)
    try:
        address = (parts.hostname or "", parts.port or 443)
        socket.create_connection(address, timeout_seconds).close()
    except (OSError, ValueError) as e:
        return str(e).lower()
    return None


@dataclass(frozen=True)
class Machine:
    """The host that is looked at or changed; tests give another root and stand-ins for programs."""

    root: str = "/"
    run: Callable[[Sequence[str]], Ran] = run_program
    reach: Callable[[str], Optional[str]] = reach
    ask: Callable[[Mapping[str, Any]], dict[str, Any]] = ask
    now_ns: Callable[[], int] = time.time_ns
    uid: int = field(default_factory=os.geteuid)

    @property
    def is_real(self) -> bool:
        return self.root == "/"

    def path(self, path: str) -> str:
        return os.path.join(self.root, path.lstrip("/"))

    def read(self, path: str) -> Optional[bytes]:
        try:
            with open(self.path(path), "rb") as f:
                return f.read()
        except OSError:
            return None

    def exists(self, path: str) -> bool:
        return os.path.exists(self.path(path))

    def find(self, dirs: Sequence[str], name: str) -> Optional[str]:
        for pattern in dirs:
            for found in sorted(glob.glob(os.path.join(self.path(pattern), name))):
                return found
        return None

    def ids(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return the uids and gids of the names known to this host."""
        if self.is_real:
            users = {p.pw_name: p.pw_uid for p in pwd.getpwall()}
            return users, {g.gr_name: g.gr_gid for g in grp.getgrall()}
        return self._names("/etc/passwd"), self._names("/etc/group")

    def _names(self, path: str) -> dict[str, int]:
        found = {}
        for line in (self.read(path) or b"").decode("utf-8", "replace").split("\n"):
            fields = line.split(":")
            if len(fields) > 2 and fields[2].isdigit():
                found[fields[0]] = int(fields[2])
        return found


# PAM


def pam_stack(machine: Machine, service: str, kind: str = "session") -> list[PamLine]:
    """Return the lines of a service's stack with all files that it includes, in order."""
    return wiring.pam_stack(machine.read, service, kind)


def pam_enabled(machine: Machine) -> bool:
    """Say whether the stacks that distributions share have the module."""
    return wiring.pam_enabled(machine.read)


def files_with_module(machine: Machine) -> list[str]:
    """Return the names of the files of PAM that name the module, but for our own."""
    found = []
    for path in sorted(glob.glob(machine.path("/etc/pam.d/*"))):
        if path == machine.path(REHEARSAL):
            continue
        try:
            with open(path, "rb") as f:
                text = f.read()
        except OSError:
            continue
        if re.search(rb"^[^#\n]*\bpam_recuse\.so\b", text, re.MULTILINE):
            found.append(os.path.basename(path))
    return found


def nss_enabled(machine: Machine) -> bool:
    return wiring.nss_enabled(machine.read)


# Looking


def look(machine: Machine) -> list[Check]:
    """Look at everything that recording on this host depends on."""
    enabled = (nss_enabled(machine), pam_enabled(machine))
    found = [_check_enabled(machine, enabled)]
    found += prerequisites(machine)
    found += _check_state(machine)
    if machine.is_real and machine.uid == 0 and enabled[0]:
        found.append(_check_overlay(machine, None))
        found.append(_check_shells(machine))
    return found


def wiring_faults(machine: Machine) -> list[Check]:
    """Look at what leads logins to recuse; give what does not work."""
    found = [_check_pam_stacks(machine), _check_nsswitch(machine)]
    if machine.is_real:
        found.append(_check_overlay(machine, None))
    return [check for check in found if check.state == "fail"]


def try_nsswitch(machine: Machine, text: bytes) -> Check:
    """Look root up as login programs would if nsswitch.conf were that."""
    with tempfile.NamedTemporaryFile(prefix="recuse-nsswitch-") as f:
        f.write(text)
        f.flush()
        os.fchmod(f.fileno(), 0o644)
        return _check_overlay(machine, f.name)


def to_json(checks: Sequence[Check]) -> str:
    worst = max((c.state for c in checks), key=("ok", "warn", "fail").index, default="ok")
    return json.dumps({"checks": [c.to_json() for c in checks], "worst": worst}, indent=2)


def prerequisites(machine: Machine) -> list[Check]:
    """Look at what must hold before logins are changed."""
    users, groups = machine.ids()
    found = [
        _check_users(users, groups),
        _check_shell(machine, users, groups),
        _check_etc_shells(machine),
        _check_pam_module(machine),
        _check_pam_stacks(machine),
        _check_nss_library(machine),
        _check_nsswitch(machine),
        _check_name_cache(machine),
    ]
    found += _check_files(machine)
    found += _check_selinux(machine)
    found += _check_agent(machine, groups)
    if machine.is_real and machine.uid == 0 and machine.exists("/run/systemd/system"):
        found.append(_check_rehearsal(machine))
    found += _check_sshd(machine)
    return found


def _check_enabled(machine: Machine, enabled: tuple[bool, bool]) -> Check:
    name = "enabled"
    if machine.exists(DISABLED):
        return Check(
            name,
            "warn",
            "%s exists: no login is recorded or accounted for" % DISABLED,
            "remove it when what was broken is repaired",
        )
    if all(enabled):
        return Check(name, "ok", "logins go through recuse")
    if not any(enabled) and not files_with_module(machine):
        return Check(
            name, "warn", "recuse is not enabled: no login is recorded", "run: recuse enable"
        )
    missing = (
        "PAM does not call %s" % MODULE
        if enabled[0]
        else "%s does not name recuse first" % NSSWITCH
    )
    return Check(
        name,
        "fail",
        "recuse is half enabled: %s" % missing,
        "run: recuse enable, or recuse disable",
    )


def _check_users(users: Mapping[str, int], groups: Mapping[str, int]) -> Check:
    missing = [n for n in ("recuse", "recuse-ship") if n not in users or n not in groups]
    if missing:
        return Check(
            "users",
            "fail",
            "no user and group %s" % " and ".join(missing),
            "run: systemd-sysusers recuse.conf",
            blocks=True,
        )
    if users["recuse"] == 0 or groups["recuse"] == 0:
        return Check("users", "fail", "user or group recuse has id 0", blocks=True)
    return Check("users", "ok", "users and groups recuse and recuse-ship exist")


def _check_shell(machine: Machine, users: Mapping[str, int], groups: Mapping[str, int]) -> Check:
    name, hint = "shell", REINSTALL

    def fail(words: str, hint: str = hint) -> Check:
        return Check(name, "fail", words, hint, blocks=True)

    path = machine.path(SHELL)
    try:
        found = os.lstat(path)
    except OSError:
        return fail("%s is missing: every overlaid login would fail" % SHELL)
    if not stat.S_ISREG(found.st_mode):
        return fail("%s is no plain file" % SHELL)
    if stat.S_IMODE(found.st_mode) != 0o6755:
        return fail(
            "%s has mode %04o, not 6755: it could not reach the agent or protect its recording"
            % (SHELL, stat.S_IMODE(found.st_mode)),
            "run: chown recuse:recuse %s && chmod 6755 %s" % (SHELL, SHELL),
        )
    if "recuse" in users and (found.st_uid, found.st_gid) != (
        users["recuse"],
        groups.get("recuse"),
    ):
        return fail(
            "%s belongs to %d:%d, not recuse:recuse" % (SHELL, found.st_uid, found.st_gid),
            "run: chown recuse:recuse %s && chmod 6755 %s" % (SHELL, SHELL),
        )
    flags = os.statvfs(path).f_flag
    for flag, option in ((os.ST_NOSUID, "nosuid"), (os.ST_NOEXEC, "noexec")):
        if flags & flag:
            return fail(
                "%s is on a file system mounted %s" % (SHELL, option),
                "mount it without %s" % option,
            )
    directory = os.path.dirname(path)
    while machine.is_real and directory != "/":
        mode = os.stat(directory).st_mode
        if mode & 0o022 or not mode & 0o001:
            return fail("%s has mode %04o" % (directory, stat.S_IMODE(mode)), "set it to 0755")
        directory = os.path.dirname(directory)
    return Check(name, "ok", "%s is there, set-id recuse" % SHELL)


def _check_etc_shells(machine: Machine) -> Check:
    """Want the recording shell unlisted: then su(1) ignores a user's -s (decision 007)."""
    lines = (machine.read("/etc/shells") or b"").decode("utf-8", "replace").split("\n")
    listed = SHELL in (line.strip() for line in lines)
    asking = [
        service
        for service in LOGIN_SERVICES
        for kind in ("auth", "account")
        if any(p.module == "pam_shells.so" for p in pam_stack(machine, service, kind))
    ]
    if asking and not listed:
        words = "pam_shells.so refuses %s logins: /etc/shells lacks %s" % (asking[0], SHELL)
        hint = "take pam_shells.so out of the service, or run: add-shell %s" % SHELL
        return Check("etc-shells", "fail", words, hint, blocks=True)
    if listed and not asking:
        words = "/etc/shells lists the recording shell, so su -s can choose another"
        return Check("etc-shells", "warn", words, "run: remove-shell %s" % SHELL)
    return Check("etc-shells", "ok", "what /etc/shells lists fits how logins are checked")


def _loads(machine: Machine, path: str) -> Optional[str]:
    """Load a library in a process of its own; None, or why it cannot be."""
    script = "import ctypes, os, sys; ctypes.CDLL(sys.argv[1], os.RTLD_NOW)"
    ran = machine.run(["/usr/bin/python3", "-I", "-c", script, path])
    return None if ran.status == 0 else (ran.err.strip().split("\n") or [""])[-1]


def _check_loads(
    machine: Machine, name: str, file: str, dirs: Sequence[str], place: str, hint: str,
    by_name: bool = False,
) -> Check:  # fmt: skip
    path = machine.find(dirs, file)
    if path is None:
        return Check(name, "fail", "%s is in no %s" % (file, place), REINSTALL, blocks=True)
    asked = file if by_name else path
    trouble = _loads(machine, asked)
    if trouble is not None:
        words = "%s cannot be loaded: %s" % (asked, trouble)
        return Check(name, "fail", words, hint, blocks=True)
    return Check(name, "ok", "%s loads" % path)


def _check_pam_module(machine: Machine) -> Check:
    place = "directory of PAM modules"
    return _check_loads(machine, "pam-module", MODULE, PAM_DIRS, place, REINSTALL)


def _check_pam_stacks(machine: Machine) -> Check:
    name = "pam-stacks"
    if not machine.exists(PROFILE) and machine.find(("/usr/sbin",), "pam-auth-update"):
        return Check(
            name, "fail", "%s is missing" % PROFILE, REINSTALL, blocks=True
        )
    services = [s for s in LOGIN_SERVICES if machine.exists("/etc/pam.d/" + s)]
    if not services:
        return Check(name, "fail", "/etc/pam.d has no login service", blocks=True)
    if not pam_enabled(machine):
        here = files_with_module(machine)
        if here:
            return Check(
                name,
                "fail",
                "%s is called by %s, but not by all logins" % (MODULE, ", ".join(here)),
                "run: recuse enable",
            )
        return Check(name, "ok", "no service calls %s yet" % MODULE)
    bare, early = [], []
    for service in services:
        modules = [p.module for p in pam_stack(machine, service)]
        if MODULE not in modules:
            bare.append(service)
            continue
        at = modules.index(MODULE)
        early += [
            "%s in %s" % (m, service)
            for m in ("pam_loginuid.so", "pam_systemd.so")
            if m in modules[at:]
        ]
    if bare:
        return Check(
            name,
            "fail" if {"sshd", "login"} & set(bare) else "warn",
            "logins of %s do not call %s" % (", ".join(bare), MODULE),
            "include common-session in /etc/pam.d/%s" % bare[0],
        )
    if early:
        return Check(
            name,
            "warn",
            "%s runs before %s: logins lack their audit id" % (MODULE, ", ".join(early)),
            "run: recuse disable && recuse enable, or move the line",
        )
    return Check(name, "ok", "%s call %s, last" % (", ".join(services), MODULE))


def _check_nss_library(machine: Machine) -> Check:
    hint = "run: ldconfig, or %s" % REINSTALL
    # By name, as the C library looks for it; by path in a root that is not ours.
    return _check_loads(
        machine, "nss-library", LIBRARY, LIB_DIRS, "library directory", hint, machine.is_real
    )


def _check_nsswitch(machine: Machine) -> Check:
    text = machine.read(NSSWITCH)
    name = "nsswitch"
    if text is None:
        return Check(name, "fail", "%s cannot be read" % NSSWITCH, blocks=True)
    if os.path.islink(machine.path(NSSWITCH)) and "authselect" in os.path.realpath(
        machine.path(NSSWITCH)
    ):
        return Check(
            name,
            "fail",
            "%s is managed by authselect" % NSSWITCH,
            "make a custom authselect profile with recuse first in passwd, and %s last in session"
            % MODULE,
            blocks=True,
        )
    services = passwd_services(text)
    if not services or services == ["recuse"]:
        return Check(
            name,
            "fail",
            "%s has no service for passwd beside recuse" % NSSWITCH,
            "write: passwd: files systemd",
            blocks=True,
        )
    if "recuse" in services[1:]:
        return Check(
            name,
            "fail",
            "%s names recuse after %s, where it is never asked" % (NSSWITCH, services[0]),
            "run: recuse enable",
        )
    if services[0] == "recuse":
        return Check(name, "ok", "passwd: %s" % " ".join(services))
    return Check(name, "ok", "passwd: %s, recuse not there yet" % " ".join(services))


def _check_name_cache(machine: Machine) -> Check:
    """nscd answers for others: it would give sshd the shell that it sees itself."""
    name = "name-cache"
    if not (machine.exists("/run/nscd/socket") or machine.exists("/var/run/nscd/socket")):
        return Check(name, "ok", "no nscd is running")
    config = (machine.read("/etc/nscd.conf") or b"").decode("utf-8", "replace")
    match = re.search(r"^\s*enable-cache\s+passwd\s+(\w+)", config, re.MULTILINE)
    if match and match.group(1) == "no":
        return Check(name, "ok", "nscd runs, but leaves passwd alone")
    return Check(
        name,
        "fail",
        "nscd answers for passwd: login programs would see the real shells",
        "set enable-cache passwd no in /etc/nscd.conf and restart nscd",
        blocks=True,
    )


def _check_files(machine: Machine) -> list[Check]:
    from recuse import config, policytoml

    found = []
    try:
        config.load(machine.path("/etc/recuse/recuse.toml"))
        found.append(Check("config", "ok", "configuration is valid"))
    except ConfigError as e:
        words = "; ".join(str(f) for f in e.faults) or e.message
        found.append(Check("config", "fail", words, "see recuse.toml(5)", blocks=True))
    try:
        files = config.read_policy_dir(machine.path("/etc/recuse/policy.d"))
        parsed = policytoml.parse_policy(files)
        words = "policy is valid: %s, %s" % (
            amounts.number(len(files), "file"), amounts.number(len(parsed.rules), "rule"),
        )  # fmt: skip
        found.append(Check("policy", "ok", words))
        if parsed.asks:
            found.append(_check_consult(machine))
    except PolicyError as e:
        words = "; ".join(str(f) for f in e.faults) or e.message
        found.append(Check("policy", "fail", words, "run: recuse policy check", blocks=True))
    return found


def _knows_context(machine: Machine, context: str) -> bool:
    """Say whether the policy that SELinux has loaded knows a context."""
    try:
        with open(machine.path("/sys/fs/selinux/context"), "wb", buffering=0) as f:
            f.write(context.encode() + b"\0")
    except OSError as error:
        return error.errno != errno.EINVAL
    return True


def _type_of(machine: Machine, path: str) -> Optional[str]:
    """Return the type in a file's label of SELinux, None if it has none."""
    try:
        label = os.getxattr(machine.path(path), "security.selinux", follow_symlinks=False)
    except OSError:
        return None
    parts = label.rstrip(b"\0").decode("utf-8", "replace").split(":")
    return parts[2] if len(parts) > 2 else None


def _check_selinux(machine: Machine) -> list[Check]:
    """Look whether SELinux, where the kernel has it, lets logins through to recuse."""
    enforce = machine.read("/sys/fs/selinux/enforce")
    if enforce is None:
        return []
    in_force = enforce.strip() == b"1"
    module = any(_knows_context(machine, context) for context in SELINUX_CONTEXTS)
    wrong = [
        "%s is %s, not %s" % (path, found, kind)
        for path, kind in SELINUX_TYPES.items()
        if machine.exists(path) and (found := _type_of(machine, path)) != kind
    ]
    if module and not wrong:
        words = "SELinux is %s, and has the module recuse" % (
            "enforcing" if in_force else "permissive"
        )
        return [Check("selinux", "ok", words)]
    restore = "restorecon -RF /usr/lib/recuse /run/recuse /var/lib/recuse* /var/spool/recuse"
    if not module:
        hint = "run: semodule --install %s && %s" % (SELINUX_MODULE, restore)
        words = "SELinux does not have the module recuse"
    else:
        hint = "run: " + restore
        words = "files have other labels of SELinux than its module says: " + "; ".join(wrong)
    if in_force:
        words += ": logins are kept from the shell or the agent of recuse"
        return [Check("selinux", "fail", words, hint, blocks=True)]
    words += ": enforcing, it would keep logins from the shell or the agent of recuse"
    return [Check("selinux", "warn", words, hint)]


def _check_consult(machine: Machine) -> Check:
    """Look whether what rules ask can be asked; as anybody but root, whether it is listened for."""
    path, name = "/run/recuse/consult.sock", "consult"
    hint = "see: systemctl status recuse-consult.socket recuse-consult.service"
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(2.0)
            connection.connect(machine.path(path))
    except PermissionError:
        return Check(name, "ok", "%s is for root alone" % path)
    except OSError as e:
        words = "rules ask, and %s cannot be reached: %s" % (path, (e.strerror or str(e)).lower())
        return Check(name, "warn", words, hint)
    return Check(name, "ok", "recuse-consult can be asked what rules ask")


def _check_socket(machine: Machine, path: str, mode: int, gid: Optional[int]) -> Check:
    name = os.path.basename(path)
    hint = "run: systemctl restart recuse-agent.socket recuse-control.socket"
    try:
        found = os.stat(machine.path(path))
    except OSError:
        return Check(
            name, "fail", "%s is missing" % path, hint, blocks=machine.exists("/run/systemd/system")
        )
    if not stat.S_ISSOCK(found.st_mode):
        return Check(name, "fail", "%s is no socket" % path, hint, blocks=True)
    if stat.S_IMODE(found.st_mode) != mode or (gid is not None and found.st_gid != gid):
        words = "%s has mode %04o and group %d" % (path, stat.S_IMODE(found.st_mode), found.st_gid)
        return Check(name, "fail", words, hint, blocks=True)
    return Check(name, "ok", "%s has mode %04o" % (path, mode))


def _check_agent(machine: Machine, groups: Mapping[str, int]) -> list[Check]:
    found = [
        _check_socket(machine, "/run/recuse/host.sock", 0o660, groups.get("recuse")),
        _check_socket(machine, "/run/recuse/control.sock", 0o666, None),
    ]
    booted = machine.exists("/run/systemd/system")
    try:
        status = machine.ask({"verb": "status"})
    except RecuseError as e:
        found.append(Check("agent", "fail" if booted else "warn", e.message, e.hint, blocks=booted))
    else:
        found.append(Check("agent", "ok", "agent answers"))
        found += [*_check_compression(status), *_check_debts(machine)]
    return found


def _check_compression(status: Mapping[str, Any]) -> list[Check]:
    """Say what compresses recordings, if the agent tells us: it does to root."""
    used = status.get("spool", {}).get("compressed_by")
    if used is None:
        return []
    words = "recordings are compressed by %s" % used
    if used == "zlib":
        words += "; ISA-L takes a quarter of the time: install libisal2, restart the agent"
    return [Check("compression", "ok", words)]


def _check_debts(machine: Machine) -> list[Check]:
    """Look for reviews of broken glass that are overdue."""
    try:
        debts = machine.ask({"verb": "grants"}).get("debts", [])
    except RecuseError as e:
        return [Check("reviews", "warn", e.message, e.hint)]
    late = [one for one in debts if one["overdue"]]
    if not late:
        return []
    who = ", ".join(sorted({printable(str(one["user"])) for one in late}))
    words = "%s of broken glass overdue, of: %s" % (amounts.number(len(late), "review"), who)
    return [Check("reviews", "warn", words, "see: recuse grants --debts; recuse review ID")]


def _check_rehearsal(machine: Machine) -> Check:
    """Have a login made up through libpam, our module and the agent; see rehearsal."""
    name, hint = "pam-rehearsal", REINSTALL

    def fail(words: str, hint: str) -> Check:
        return Check(name, "fail", words, hint, blocks=True)

    if machine.exists(DISABLED):
        return Check(name, "ok", "no login was rehearsed, since recuse is disabled")
    if not machine.exists(REHEARSAL):
        return fail("%s is missing, so no login can be rehearsed" % REHEARSAL, hint)
    try:
        target = os.readlink(machine.path(REHEARSAL_FALLBACK))
    except OSError:
        target = ""
    if target != "refuse":  # a rehearsal without an agent would seem to go well
        return fail("%s does not point to refuse" % REHEARSAL_FALLBACK, hint)
    ran = machine.run([sys.executable or "/usr/bin/python3", "-I", rehearsal.__file__])
    if ran.status == -signal.SIGALRM:
        return fail(
            "the rehearsed login did not end within %d s" % rehearsal.LIMIT_SECONDS,
            "see: journalctl -t recuse-agent -b, and what %s names" % REHEARSAL,
        )
    try:
        found = rehearsal.Result(**json.loads(ran.out))
    except (ValueError, TypeError):
        why = (ran.err.strip().split("\n") or [""])[-1] or "status %d" % ran.status
        return fail("the rehearsed login broke off: %s" % why, hint)
    said = " ".join(" ".join(found.messages).split()) or found.reason
    if found.stage == "import":
        return Check(
            name,
            "warn",
            "no login was rehearsed: %s" % found.reason,
            "install python-pam, the Debian package python3-pampy",
        )
    if found.stage == "auth":
        return fail("PAM does not let root rehearse a login: %s" % said, "look at %s" % REHEARSAL)
    if found.code in _PAM_NO_MODULE:
        return fail("PAM cannot load %s for the rehearsed login: %s" % (MODULE, said), hint)
    if found.stage == "open":
        return fail(
            "the rehearsed login was refused: %s" % said,
            "see: systemctl status recuse-agent.socket recuse-agent",
        )
    if found.stage == "close":
        return fail("the rehearsed login could not be ended: %s" % said, hint)
    words = "the agent answered a rehearsed login within %.1f ms" % found.open_ms
    if found.open_ms >= REHEARSAL_SLOW_MS:
        hint = "logins wait for it, at most 2 s; see: journalctl -u recuse-agent"
        return Check(name, "warn", words, hint)
    return Check(name, "ok", words)


def _check_sshd(machine: Machine) -> list[Check]:
    if machine.find(("/usr/sbin",), "sshd") is None:
        return [Check("sshd", "ok", "no OpenSSH server here")]
    files = [machine.path("/etc/ssh/sshd_config")]
    files += sorted(glob.glob(machine.path("/etc/ssh/sshd_config.d/*.conf")))
    relative = [os.path.relpath(path, machine.root) for path in files]
    text = b"\n".join(machine.read(path) or b"" for path in relative).decode("utf-8", "replace")

    def set_to(key: str) -> list[str]:
        lines = re.findall(r"^\s*%s[ \t=]+(.+?)\s*$" % key, text, re.MULTILINE | re.IGNORECASE)
        return [value for value in lines if value.lower() != "none"]

    ran = machine.run(["/usr/sbin/sshd", "-T"])
    if ran.status == 0:
        values: dict[str, list[str]] = {}
        for line in ran.out.split("\n"):
            key, _, value = line.partition(" ")
            values.setdefault(key, []).append(value)
    else:  # not root, or sshd has never run: what its files say must do
        values = {"usepam": set_to("UsePAM")[:1], "subsystem": set_to("Subsystem")}
    found = []
    if values.get("usepam") == ["yes"]:
        found.append(Check("sshd", "ok", "sshd uses PAM"))
    else:
        found.append(
            Check(
                "sshd",
                "fail",
                "sshd does not use PAM: logins without a session would leave no trace",
                "write UsePAM yes in /etc/ssh/sshd_config",
            )
        )
    chroots, forced = set_to("ChrootDirectory"), set_to("ForceCommand")
    if chroots and not any("internal-sftp" in f for f in forced):
        found.append(
            Check(
                "sshd-chroot",
                "warn",
                "ChrootDirectory %s: sessions there need %s inside" % (chroots[0], SHELL),
                "exclude them with ForceCommand internal-sftp, or copy the shell into it",
            )
        )
    if forced:
        found.append(
            Check(
                "sshd-forced",
                "ok",
                "ForceCommand %s is run by the recording shell" % printable(forced[0]),
            )
        )
    if any("internal-sftp" in v for v in values.get("subsystem", []) + forced):
        found.append(
            Check("sshd-sftp", "ok", "internal-sftp starts no shell: such logins get a stub")
        )
    return found


def _check_state(machine: Machine) -> list[Check]:
    """Look at keys, spool, ledger and shipping; each needs some privilege to be seen."""
    if machine.is_real and machine.uid != 0:
        return [
            Check("state", "warn", "keys, spool and ledger were not looked at", "run it as root")
        ]
    found = [_check_host_key(machine)]
    found += _check_spool(machine)
    found.append(_check_filter(machine))
    found.append(_check_clock(machine))
    found += _check_shipping(machine)
    found += _check_notices(machine)
    return found


def _check_host_key(machine: Machine) -> Check:
    key = machine.path("/var/lib/recuse/host.key")
    try:
        found = os.stat(key)
    except OSError:
        return Check(
            "host-key", "warn", "no host key yet", "it is made when the agent starts: recuse status"
        )
    if stat.S_IMODE(found.st_mode) & 0o077 or (machine.is_real and found.st_uid != 0):
        return Check(
            "host-key",
            "fail",
            "host key has mode %04o and owner %d" % (stat.S_IMODE(found.st_mode), found.st_uid),
            "others may have read it: chmod 600, and start a new epoch",
        )
    if not machine.exists("/var/lib/recuse/host.pub"):
        return Check("host-key", "fail", "host.pub is missing", "restart recuse-agent")
    return Check("host-key", "ok", "host key is there, for root alone")


def _append_only_works(directory: str) -> Optional[bool]:
    """Say whether the file system there has the append-only attribute; None: cannot tell."""
    try:
        fd, path = tempfile.mkstemp(prefix=".doctor-", dir=directory)
    except OSError:
        return None
    try:
        (flags,) = struct.unpack("l", fcntl.ioctl(fd, _FS_IOC_GETFLAGS, struct.pack("l", 0)))
        fcntl.ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("l", flags | _FS_APPEND_FL))
        fcntl.ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("l", flags & ~_FS_APPEND_FL))
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
        os.unlink(path)


def _spool_settings(machine: Machine) -> tuple[int, str]:
    """Return min_free and the central URL of a configuration that may be broken."""
    from recuse import config

    try:
        found: Any = config.load(machine.path("/etc/recuse/recuse.toml"))
        return int(found.spool.min_free), str(found.central.url)
    except (RecuseError, AttributeError, TypeError, ValueError):
        return 64 * 1024 * 1024, ""


def _check_spool(machine: Machine) -> list[Check]:
    live = machine.path("/var/spool/recuse/live")
    if not os.path.isdir(live):
        hint = "run: systemd-tmpfiles --create recuse.conf"
        return [Check("spool", "fail", "%s is missing" % live, hint)]
    found = []
    if os.stat(live).st_mode & 0o077:
        words = "%s can be entered by others" % live
        found.append(Check("spool", "fail", words, "run: chmod 700 %s" % live))
    found += [_check_space(machine, live), _check_append_only(live)]
    quarantine = machine.path("/var/spool/recuse/quarantine")
    set_aside = os.listdir(quarantine) if os.path.isdir(quarantine) else []
    if set_aside:
        words = "%d damaged files were set aside" % len(set_aside)
        hint = "look at /var/spool/recuse/quarantine and at: recuse verify"
        found.append(Check("quarantine", "warn", words, hint))
    return found


def _check_space(machine: Machine, live: str) -> Check:
    name, hint = "spool-space", "make room in /var"
    space = os.statvfs(live)
    free = space.f_bavail * space.f_frsize
    min_free, _ = _spool_settings(machine)
    words = "%s free for recordings" % amounts.size(free)
    if free < min_free:
        return Check(name, "fail", words + ", less than [spool] min_free", hint)
    if free < 4 * min_free:
        return Check(name, "warn", words, hint)
    return Check(name, "ok", words)


def _check_append_only(live: str) -> Check:
    name = "append-only"
    if _append_only_works(live):
        return Check(name, "ok", "the spool's file system has append-only files")
    words = (
        "the spool's file system has no append-only files: "
        "who gets hold of a recording's descriptor could change it"
    )
    return Check(name, "warn", words, "use ext4, xfs or btrfs for /var/spool")


def _check_filter(machine: Machine) -> Check:
    """Say whether recorders can give up system calls, and whether those that run have."""
    name, without = "filter", []
    if not machine.exists("/proc/sys/kernel/seccomp/actions_avail"):
        words = "the kernel has no seccomp filters: recorders keep system calls they do not need"
        return Check(name, "warn", words, "boot a kernel with CONFIG_SECCOMP_FILTER")
    recorder = str(machine.ids()[0].get("recuse"))
    for path in glob.glob(machine.path("/proc/[0-9]*/status")):
        status = machine.read(os.path.relpath(path, machine.root)) or b""
        fields = dict(re.findall(r"^(\w+):\s*(.*)$", status.decode("utf-8", "replace"), re.M))
        is_relay = fields.get("Name") == "recuse-shell" and fields["Uid"].split() == [recorder] * 4
        if is_relay and fields.get("Seccomp") == "0":
            without.append(fields["Pid"])
    if without:
        words = "recorders keep system calls they do not need: process %s" % ", ".join(without)
        hint = "was memory short when they began? journalctl RECUSE_SESSION names their sessions"
        return Check(name, "warn", words, hint)
    return Check(name, "ok", "recorders give up the system calls they do not need")


def _check_clock(machine: Machine) -> Check:
    now = machine.now_ns()
    try:
        newest = os.stat(machine.path("/var/lib/recuse/ledger/checkpoint")).st_mtime_ns
    except OSError:
        newest = 0
    if newest > now + 60 * 10**9:
        return Check(
            "clock",
            "fail",
            "the ledger is %d s ahead of the clock" % ((newest - now) // 10**9),
            "set the clock; entries made meanwhile carry wrong times",
        )
    return Check("clock", "ok", "the clock agrees with the ledger")


def _check_shipping(machine: Machine) -> list[Check]:
    backlog = _check_backlog(machine)
    found = [backlog, *_check_central(machine), *_check_apparmor(machine)]
    try:
        receipt = os.stat(machine.path("/var/lib/recuse-ship/receipts/checkpoint")).st_mtime_ns
    except OSError:
        is_idle = backlog == NO_BACKLOG
        found.append(Check("receipts", "ok" if is_idle else "warn", "no receipt yet"))
    else:
        age = (machine.now_ns() - receipt) // 10**9
        found.append(Check("receipts", "ok", "last receipt %s ago" % amounts.span(age)))
    return found


def _check_backlog(machine: Machine) -> Check:
    now = machine.now_ns()
    count = size = oldest_ns = 0
    for path in glob.glob(machine.path("/var/spool/recuse/out/*")):
        try:
            entry = os.stat(path)
        except OSError:
            continue
        count, size = count + 1, size + entry.st_size
        oldest_ns = max(oldest_ns, now - entry.st_mtime_ns)
    if not count:
        return NO_BACKLOG
    age = oldest_ns // 10**9
    told = amounts.number(count, "segment"), amounts.size(size), amounts.span(age)
    words = "%s (%s) to be shipped, the oldest waits since %s" % told
    if age > BACKLOG_WARN_SECONDS or size > BACKLOG_WARN_BYTES:
        return Check("backlog", "warn", words, "see: journalctl -u recuse-ship")
    return Check("backlog", "ok", words)


def _check_central(machine: Machine) -> list[Check]:
    name, (_, url) = "collector", _spool_settings(machine)
    if url.startswith("dir:"):
        path = machine.path(url[4:])
        if os.path.isdir(path):
            return [Check(name, "ok", "central storage is %s" % path)]
        hint = "see: journalctl -u recuse-ship"
        return [Check(name, "warn", "central storage %s is missing" % path, hint)]
    if not url.startswith("https:"):
        return []
    trouble = machine.reach(url)
    if trouble:
        hint = "recordings wait in the spool; see: journalctl -u recuse-ship"
        found = [Check(name, "warn", "%s cannot be reached: %s" % (url, trouble), hint)]
    else:
        found = [Check(name, "ok", "%s can be reached" % url)]
    if not machine.exists("/etc/recuse/collector.pub"):
        words = "no collector key: no receipt can be believed"
        found.append(Check("enrolment", "fail", words, "run: recuse enroll"))
    return found


def _is_permitted(machine: Machine, path: str, right: int) -> bool:
    """Say whether the profile of recuse-ship permits to write (2) or read (4): AppArmor knows."""
    with open(machine.path(APPARMOR + "/.access"), "r+b", buffering=0) as f:
        f.write(b"label\0recuse-ship\0\x02" + os.fsencode(path))  # 2: of files
        allowed = re.match(rb"allow 0x([0-9a-f]+)\n", f.read(256))
    return allowed is None or bool(int(allowed[1], 16) & right)


def _check_apparmor(machine: Machine) -> list[Check]:
    """Look whether AppArmor, where it is enforced, lets recuse-ship where recuse.toml sends it."""
    from recuse import config

    if b"recuse-ship (enforce)\n" not in (machine.read(APPARMOR + "/profiles") or b""):
        return []
    try:
        central = config.load(machine.path("/etc/recuse/recuse.toml")).central
        wanted = {}  # the rules that are missing, by path
        if central.directory and not _is_permitted(machine, "%s/x" % central.directory, 2):
            wanted[central.directory] = "%s/ rw, %s/** rwkl," % ((central.directory,) * 2)
        if central.ca and not _is_permitted(machine, str(central.ca), 4):
            wanted[central.ca] = "%s r," % central.ca
    except (OSError, RecuseError):
        return []
    if not wanted:
        return [Check("apparmor", "ok", "AppArmor permits recuse-ship what recuse.toml names")]
    words = "AppArmor keeps recuse-ship from " + " and ".join(map(str, wanted))
    hint = "add to %s, then reload apparmor: %s" % (APPARMOR_LOCAL, " ".join(wanted.values()))
    return [Check("apparmor", "fail", words, hint)]


def _check_notices(machine: Machine) -> list[Check]:
    """Look at the channels on which admins are told, if there are any."""
    path = machine.path("/etc/recuse/notify.toml")
    try:
        channels = notifyconf.load(path).channels
    except ConfigError as e:
        words = "; ".join(map(str, e.faults))
        return [Check("notices", "fail", words, "see: recuse notify check")]
    if not channels:
        return [Check("notices", "ok", "notices to admins are not configured")]
    try:
        socket_path = machine.path("/run/recuse-notify/notify.sock")
        found = ask({"verb": "status"}, socket_path, who="recuse-notify")
    except RecuseError as e:
        return [Check("notices", "fail", e.message, "see: systemctl status recuse-notify")]
    checks = [_check_channel(one) for one in found["channels"]]
    if found["fault"]:
        hint = "see: recuse notify check"
        checks.append(Check("notices", "fail", "not in force: %s" % found["fault"], hint))
    running = {one["channel"] for one in found["channels"]}
    if running != set(channels) and not found["fault"]:
        hint = "run: systemctl reload recuse-notify"
        checks.append(Check("notices", "warn", "notify.toml is not in force yet", hint))
    return checks


def _check_channel(one: Mapping[str, Any]) -> Check:
    name, state, waiting = "notices %s" % one["channel"], one["state"], one["waiting"]
    words = {
        "ok": "delivers",
        "quiet": "is set to say nothing",
        "failing": "fails for the moment: %s" % one["fault"],
        "dead": "delivers nothing: %s" % one["fault"],
        "gone": "is off, its receiver wants no more",
    }.get(state, state)
    if waiting and one["oldest_seconds"] is not None:
        age = amounts.span(one["oldest_seconds"])
        words += "; %s waiting, the oldest for %s" % (amounts.number(waiting, "notice"), age)
    if one["given_up"]:
        words += "; given up: %d" % one["given_up"]
    level = {"dead": "fail", "gone": "fail", "failing": "warn"}.get(state, "ok")
    hint = None if level == "ok" else "see: recuse notify status; journalctl -t recuse-notify"
    return Check(name, level, words, hint)


# Lookups as login programs make them

# In mounts of its own: another nsswitch.conf if given, and getent under the name of su, since the
# overlay is for the executable that asks.
_AS_LOGIN = """
set -e
[ -z "$1" ] || mount --bind "$1" /etc/nsswitch.conf
mount --bind /usr/bin/getent "$2"
shift
exec "$@"
"""


def _lookup_as_login(machine: Machine, nsswitch: Optional[str], name: str) -> Ran:
    su = os.path.realpath("/bin/su")
    return machine.run(
        [
            "/usr/bin/unshare",
            "--mount",
            "--propagation",
            "private",
            "--",
            "/bin/sh",
            "-c",
            _AS_LOGIN,
            "sh",
            nsswitch or "",
            su,
            "passwd",
            name,
        ]
    )


def _check_overlay(machine: Machine, nsswitch: Optional[str]) -> Check:
    """Look root up as login programs do; `nsswitch`: with that file in place of the host's."""
    name = "overlay"
    plain = machine.run(["/usr/bin/getent", "passwd", "root"])
    if plain.status != 0 or plain.out.count(":") != 6:
        return Check(name, "fail", "getent passwd root fails", "look at %s" % NSSWITCH, blocks=True)
    before = plain.out.strip().split(":")
    seen = _lookup_as_login(machine, nsswitch, "root")
    after = seen.out.strip().split(":")
    if seen.status != 0 and ("unshare:" in seen.err or "mount:" in seen.err):
        return Check(
            name,
            "warn",
            "lookups of login programs could not be tried: %s" % seen.err.strip(),
            "look at the shell that sshd gives root",
        )
    if seen.status != 0 or len(after) != 7:
        return Check(
            name,
            "fail",
            "login programs would not find root: %s" % (seen.err.strip() or "no entry"),
            REINSTALL,
            blocks=True,
        )
    if after[:6] != before[:6]:
        return Check(name, "fail", "login programs would see another root", blocks=True)
    disabled = machine.exists(DISABLED)
    expected = before[6] if disabled else SHELL
    if after[6] not in (expected, before[6]) or (after[6] != expected and _is_common(before[6])):
        return Check(
            name,
            "fail",
            "login programs see shell %s of root, not %s" % (after[6], expected),
            "look at %s and at: recuse doctor" % NSSWITCH,
            blocks=True,
        )
    missing = _lookup_as_login(machine, nsswitch, "recuse-no-such-user")
    if missing.status != 2:
        return Check(
            name,
            "fail",
            "looking up an unknown user fails instead of finding nobody",
            REINSTALL,
            blocks=True,
        )
    return Check(name, "ok", "login programs see %s of root" % after[6])


def _is_common(shell: str) -> bool:
    """Say whether the name service module surely knows a shell."""
    return shell in ("/bin/sh", "/bin/bash", "/usr/bin/bash", "/bin/dash", "/usr/bin/zsh", "")


def _check_shells(machine: Machine) -> Check:
    """Look for users whose shell the name service module does not know: they go unrecorded."""
    ran = machine.run(["/usr/bin/getent", "passwd"])
    users: dict[str, list[str]] = {}
    for line in ran.out.split("\n"):
        fields = line.split(":")
        if len(fields) == 7:
            users.setdefault(fields[6], []).append(fields[0])
    odd = []
    for shell, names in sorted(users.items())[:MAX_SHELLS]:
        if shell == SHELL or os.path.basename(shell) in _NO_SHELLS:
            continue
        seen = _lookup_as_login(machine, None, names[0])
        if seen.status == 0 and seen.out.strip().split(":")[-1] == shell:
            odd.append("%s (%s)" % (shell, ", ".join(names[:3])))
    if odd and not machine.exists(DISABLED):
        return Check(
            "shells",
            "warn",
            "logins with these shells are not recorded: %s" % "; ".join(odd),
            "name them in /etc/recuse/shells.d, see libnss_recuse(8)",
        )
    return Check("shells", "ok", "every shell that users have is recorded")
