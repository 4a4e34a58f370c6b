"""libnss_recuse.so.2, through glibc's NSS: who sees which shell, and that nobody is locked out."""

from __future__ import annotations

import errno
import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import List, Sequence

import pytest
from native import HERE, VARIANTS, Build, environment

USERS = [
    # name, shell, overlaid
    ("bashful", "/bin/bash", True),
    ("dashing", "/usr/bin/dash", True),
    ("zed", "/usr/local/bin/zsh", True),
    ("empty", "", True),
    ("nologin", "/usr/sbin/nologin", False),
    ("binfalse", "/bin/false", False),
    ("git", "/usr/bin/git-shell", False),
    ("menu", "/opt/menu/bin/menu", False),
    ("homebash", "/home/homebash/bash", False),
    ("optbash", "/opt/bin/bash", False),
    ("optnologin", "/opt/bin/nologin", False),
    ("relative", "bash", False),
    ("dots", "/bin/..", False),
    ("slash", "/bin/", False),
]
LATER = "recuse [NOTFOUND=continue] users files"


@dataclass(frozen=True)
class Host:
    """The module built for paths of its own, a service of users behind it, and login programs."""

    build: Build

    @property
    def etc(self) -> Path:
        return self.build.path / "etc"

    @property
    def shell(self) -> Path:
        return self.build.path / "recuse-shell"

    def run(
        self,
        *lookups: str,
        program: str = "bin/loginprogram",
        services: str = LATER,
        env: "dict[str, str] | None" = None,
    ) -> List[str]:
        done = subprocess.run(
            [str(self.build.path / program), services, *lookups],
            capture_output=True,
            text=True,
            env=environment(LD_LIBRARY_PATH=str(self.build.path), **(env or {})),
            timeout=60,
        )
        assert done.returncode == 0, (done.returncode, done.stderr)
        return done.stdout.splitlines()

    def shell_of(self, name: str, program: str = "bin/loginprogram") -> str:
        (line,) = self.run(f"nam:{name}", program=program)
        return line.rpartition(":")[2]


@pytest.fixture(scope="module", params=VARIANTS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Host:
    build = Build(request.param, tmp_path_factory.mktemp(f"nss-{request.param}"))
    host = Host(build)
    build.make(
        "nss",
        [
            f'-DNSS_DISABLED="\\"{host.etc}/disabled\\""',
            f'-DNSS_SHELL="\\"{host.shell}\\""',
            f'-DNSS_OVERLAY_DIR="\\"{host.etc}/overlay.d\\""',
            f'-DNSS_SHELLS_DIR="\\"{host.etc}/shells.d\\""',
            f"-DNSS_PROGRAM_OWNER={os.geteuid()}",
        ],
    )
    build.compile("libnss_users.so.2", [HERE / "nss_users.c"], "-shared", "-fPIC")
    tool = build.compile("nss_tool", [HERE / "nss_tool.c"], "-pthread", "-ldl")
    for name, mode in (("bin/loginprogram", 0o755), ("bin/other", 0o755)):
        target = build.path / name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(tool, target)
        target.chmod(mode)
    (host.etc / "overlay.d").mkdir(parents=True)
    (host.etc / "shells.d").mkdir()
    (host.etc / "overlay.d/loginprogram").touch()
    host.shell.write_text("#!/bin/sh\n")
    return host


@pytest.fixture
def host(built: Host) -> Host:
    """The host as it is when recuse is enabled."""
    (built.etc / "disabled").unlink(missing_ok=True)
    built.shell.chmod(0o755)
    for path in (built.etc / "shells.d").iterdir():
        path.unlink()
    return built


@pytest.mark.parametrize("name, shell, overlaid", USERS, ids=[user[0] for user in USERS])
def test_shell_that_a_login_program_sees(host: Host, name: str, shell: str, overlaid: bool) -> None:
    uid = 70000 + [user[0] for user in USERS].index(name)
    want = str(host.shell) if overlaid else shell
    entry = f"{name}:{uid}:{uid}::/home/{name}:{want}"
    assert host.run(f"nam:{name}", f"uid:{uid}", f"old:{name}") == [entry] * 3


def test_shell_that_other_programs_see(host: Host) -> None:
    got = host.run(*(f"nam:{name}" for name, _, _ in USERS), program="bin/other")
    assert [line.rpartition(":")[2] for line in got] == [shell for _, shell, _ in USERS]


def test_root_of_the_passwd_file(host: Host) -> None:
    shell = pwd.getpwuid(0).pw_shell
    assert shell in ("/bin/bash", "/bin/sh")
    login = host.run("nam:root", "uid:0", services="recuse files")
    other = host.run("nam:root", "uid:0", services="recuse files", program="bin/other")
    assert [line.rpartition(":")[2] for line in login] == [str(host.shell)] * 2
    assert [line.rpartition(":")[2] for line in other] == [shell] * 2


def test_entry_keeps_its_other_fields(host: Host) -> None:
    (login,) = host.run("nam:root", services="recuse files")
    (plain,) = host.run("nam:root", services="files")
    assert login.split(":")[:5] == plain.split(":")[:5]


def test_unknown_user(host: Host) -> None:
    lookups = ("nam:nobody-has-this-name", "uid:79000", "old:nobody-has-this-name")
    assert host.run(*lookups) == ["none"] * 3


def test_nothing_behind_the_module(host: Host) -> None:
    """A module that asks for itself would never come back."""
    assert host.run("nam:root", "uid:0", services="recuse") == ["none"] * 2


def test_module_twice_in_the_list(host: Host) -> None:
    (line,) = host.run("nam:bashful", services="recuse recuse users")
    assert line.endswith(f":{host.shell}")


def test_enumeration_is_not_touched(host: Host) -> None:
    (with_us,) = host.run("all", services="recuse users files")
    (without,) = host.run("all", services="users files")
    assert with_us == without
    assert with_us.endswith("users, 0 overlaid")
    assert int(with_us.split()[0]) > len(USERS)


def test_every_buffer_size_gives_the_entry_or_erange(host: Host) -> None:
    sizes = range(0, 120)
    login = host.run(*(f"nam:bashful:{size}" for size in sizes))
    plain = host.run(*(f"nam:bashful:{size}" for size in sizes), services="users files")
    assert [line == f"error {errno.ERANGE}" for line in login] == [
        line == f"error {errno.ERANGE}" for line in plain
    ]
    assert len(set(login)) == 2


def test_every_buffer_size_for_the_passwd_file(host: Host) -> None:
    sizes = range(0, 200, 3)
    login = host.run(*(f"uid:0:{size}" for size in sizes), services="recuse files")
    plain = host.run(*(f"uid:0:{size}" for size in sizes), services="files")
    assert [line.startswith("error") for line in login] == [
        line.startswith("error") for line in plain
    ]
    assert {line for line in login if line.startswith("error")} == {f"error {errno.ERANGE}"}


def test_large_entry_with_the_buffer_that_glibc_grows(host: Host) -> None:
    small, old = host.run("nam:wordy", "old:wordy")
    assert small == f"error {errno.ERANGE}"
    assert old.endswith(f":/home/wordy:{host.shell}")


@pytest.mark.parametrize("services", ["users", "files users"])
def test_failing_service_is_reported_as_without_us(host: Host, services: str) -> None:
    lookups = ("nam:broken", "uid:79999", "old:broken")
    with_us = host.run(*lookups, services=f"recuse {services}")
    assert with_us == host.run(*lookups, services=services)
    assert with_us == [f"error {errno.EIO}"] * 3


@pytest.mark.parametrize("name", ["bashful", "nologin", "broken", "nobody-has-this-name"])
@pytest.mark.parametrize("services", ["users", "users files", "files users"])
def test_later_services_are_asked_once(
    host: Host, tmp_path: Path, name: str, services: str
) -> None:
    """Twice could be two time-outs, and two answers."""
    log = tmp_path / "log"
    host.run(f"nam:{name}", services=f"recuse {services}", env={"NSS_USERS_LOG": str(log)})
    assert log.read_text() == "."


def test_service_that_asks_nss_sees_users_as_they_are(host: Host) -> None:
    assert host.shell_of("asks") == str(host.shell)


def test_threads(host: Host) -> None:
    assert host.run("threads:8:bashful,root,asks", "nam:bashful")[0] == "0 wrong"


@pytest.mark.parametrize(
    "name, expected",
    [
        ("bashful", "status 1 errno 1234 errnop 4711"),
        ("nobody-has-this-name", "status 2 errno 1234 errnop 0"),
        ("broken", f"status 2 errno 1234 errnop {errno.EIO}"),
        ("wordy", f"status -2 errno 1234 errnop {errno.ERANGE}"),
    ],
)
def test_status_and_errno(host: Host, name: str, expected: str) -> None:
    assert host.run(f"direct:{name}", services="recuse users") == [expected]


def test_status_for_other_programs(host: Host) -> None:
    expected = "status 0 errno 1234 errnop 4711"
    assert host.run("direct:bashful", program="bin/other") == [expected]


def test_disabled(host: Host) -> None:
    (host.etc / "disabled").touch()
    assert host.shell_of("bashful") == "/bin/bash"
    assert host.run("direct:bashful") == ["status 0 errno 1234 errnop 4711"]


def test_directories_that_who_starts_su_may_not_enter(host: Host) -> None:
    """What is asked for is root's, whoever starts a set-id program."""
    (host.etc / "shells.d" / "menu").touch()
    host.etc.chmod(0o700)
    lookups = [f"real:{os.geteuid() + 1}", "nam:bashful", "nam:menu"]
    assert [line.rpartition(":")[2] for line in host.run(*lookups)] == [str(host.shell)] * 2
    (host.etc / "disabled").touch()
    shells = ["/bin/bash", "/opt/menu/bin/menu"]
    assert [line.rpartition(":")[2] for line in host.run(*lookups)] == shells


@pytest.mark.parametrize("fault", ["missing", "not-executable"])
def test_recuse_shell_that_cannot_be_run(host: Host, tmp_path: Path, fault: str) -> None:
    aside = tmp_path / "aside"
    if fault == "missing":
        host.shell.rename(aside)
    else:
        host.shell.chmod(0o644)
    try:
        assert host.shell_of("bashful") == "/bin/bash"
    finally:
        if fault == "missing":
            aside.rename(host.shell)


def test_further_shells(host: Host) -> None:
    assert host.shell_of("menu") == "/opt/menu/bin/menu"
    for name in ("menu", "bash", "nologin", "false"):
        (host.etc / "shells.d" / name).touch()
    assert host.shell_of("menu") == str(host.shell)
    assert host.shell_of("optbash") == str(host.shell)
    assert host.shell_of("optnologin") == "/opt/bin/nologin"
    assert host.shell_of("nologin") == "/usr/sbin/nologin"
    assert host.shell_of("binfalse") == "/bin/false"
    assert host.shell_of("relative") == "bash"


@pytest.mark.parametrize("mode", [0o775, 0o757])
def test_program_that_others_can_write_to(host: Host, mode: int) -> None:
    program = host.build.path / "bin/loginprogram"
    program.chmod(mode)
    try:
        assert host.shell_of("bashful") == "/bin/bash"
    finally:
        program.chmod(0o755)
    assert host.shell_of("bashful") == str(host.shell)


def test_program_that_was_replaced_while_it_runs(host: Host) -> None:
    """The kernel then says "(deleted)": a daemon that an upgrade has overtaken."""
    place = host.build.path / "gone"
    place.mkdir(exist_ok=True)
    shutil.copy(host.build.path / "bin/loginprogram", place / "loginprogram")
    script = 'exec 9<"$0"; shift 0; rm "$0"; exec /proc/self/fd/9 "$@"'
    done = subprocess.run(
        ["/bin/bash", "-c", script, str(place / "loginprogram"), LATER, "self", "nam:bashful"],
        capture_output=True,
        text=True,
        env=environment(LD_LIBRARY_PATH=str(host.build.path)),
        timeout=60,
    )
    path, entry = done.stdout.splitlines()
    assert path == f"{place}/loginprogram (deleted)"
    assert entry.endswith(f":{host.shell}")


@pytest.mark.parametrize(
    "name",
    ["other/loginprogram/other", "loginprogram.d", "loginprogra", "loginprogram ", "Loginprogram"],
)
def test_program_of_a_similar_name(host: Host, name: str) -> None:
    path = host.build.path / "similar" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(host.build.path / "bin/loginprogram", path)
    assert host.shell_of("bashful", program=f"similar/{name}") == "/bin/bash"


def test_getent_sees_users_as_they_are(host: Host) -> None:
    if host.build.variant == "plain":  # getent has no sanitizer in it
        env = environment(LD_LIBRARY_PATH=str(host.build.path))
        command: Sequence[str] = ["getent", "-s", "passwd:recuse users files", "passwd"]
        done = subprocess.run(
            [*command, "bashful", "root"], capture_output=True, text=True, env=env, timeout=60
        )
        shells = [line.rpartition(":")[2] for line in done.stdout.splitlines()]
        assert shells == ["/bin/bash", pwd.getpwuid(0).pw_shell]


def test_module_exports_its_two_functions_only(host: Host) -> None:
    module = str(host.build.path / "libnss_recuse.so.2")
    done = subprocess.run(
        ["nm", "-D", "--defined-only", module], capture_output=True, text=True, check=True
    )
    names = sorted(line.split()[-1] for line in done.stdout.splitlines())
    assert names == ["_nss_recuse_getpwnam_r", "_nss_recuse_getpwuid_r"]


def test_module_has_no_allocation_and_no_socket(host: Host) -> None:
    if host.build.variant == "plain":  # a sanitizer brings its own
        module = str(host.build.path / "libnss_recuse.so.2")
        done = subprocess.run(
            ["nm", "-D", "--undefined-only", module], capture_output=True, text=True, check=True
        )
        names = {line.split()[-1].partition("@")[0] for line in done.stdout.splitlines()}
        assert {"getpwnam_r", "getpwuid_r", "readlink"} <= names
        assert not names & {"malloc", "calloc", "realloc", "__tls_get_addr", "socket", "fopen"}


def test_module_says_its_name_and_is_hardened(host: Host) -> None:
    module = str(host.build.path / "libnss_recuse.so.2")
    done = subprocess.run(
        ["readelf", "-dlW", module], capture_output=True, text=True, check=True
    ).stdout
    assert "soname: [libnss_recuse.so.2]" in done
    assert "GNU_RELRO" in done and "BIND_NOW" in done
    (stack,) = [line for line in done.splitlines() if "GNU_STACK" in line]
    assert " RW " in stack
