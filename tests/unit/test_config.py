"""Configuration: defaults, values, faults, paths, and whose files are trusted."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest

from recuse import config
from recuse.config import (
    CollectorConfig,
    Config,
    Paths,
    load,
    load_collector,
    read_policy_dir,
)
from recuse.errors import ConfigError, PolicyError
from recuse.tomlfile import parse_duration, parse_size

ETC = Path(__file__).parents[2] / "packaging/etc"


def write(path: Path, text: str, mode: int = 0o644) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def loaded(tmp_path: Path, text: str) -> Config:
    return load(write(tmp_path / "recuse.toml", text))


def faults_of(load_file: Callable[[Path], object], tmp_path: Path, text: str) -> List[str]:
    with pytest.raises(ConfigError) as caught:
        load_file(write(tmp_path / "f.toml", text))
    return [str(fault).replace(f"{tmp_path}/", "") for fault in caught.value.faults]


@pytest.fixture
def owners(monkeypatch: pytest.MonkeyPatch) -> Dict[str, int]:
    """Check files as for root; all are root's but those whose inode's owner is set here."""
    others: Dict[str, int] = {}

    def status(file: Any) -> os.stat_result:
        seen = os.stat(file)
        owner = {os.stat(path).st_ino: uid for path, uid in others.items()}.get(seen.st_ino, 0)
        return os.stat_result((*seen[:4], owner, *seen[5:10]))

    monkeypatch.setattr(config, "_is_root", lambda: True)
    monkeypatch.setattr(config, "_status", status)
    return others


# -----------------------------------------------------------------------------
# Defaults


def test_a_missing_file_means_the_defaults(tmp_path: Path) -> None:
    assert load(tmp_path / "none.toml") == Config()
    assert load_collector(str(tmp_path / "none.toml")) == CollectorConfig()


def test_defaults_are_those_of_the_manual() -> None:
    default = Config()
    assert (default.host.name, default.host.org, default.host.tags) == ("", "local", frozenset())
    assert default.central.url == "dir:/var/lib/recuse-central"
    assert default.central.directory == Path("/var/lib/recuse-central")
    assert default.central.ca is None
    assert default.session == config.SessionConfig(
        notice=True,
        capture_bytes=65536,
        rate=8 << 20,
        burst=256 << 20,
        size=4 << 30,
        on_limit="slow",
        user_sessions=2000,
        user_live=4 << 30,
        user_volume=8 << 30,
        user_period=86400,
        on_user_limit="slow",
        on_agent_failure="record-locally",
        on_spool_full="stub",
        recovery_groups=("root",),
        ignored_services=("cron", "crond", "atd", "systemd-user"),
        transfer=("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server"),
        input=False,
    )
    assert default.spool == config.SpoolConfig(64 << 20, 16 << 20, 0, 30, 524288)
    assert default.ledger.heartbeat_seconds == 300


SHIPPED = [("recuse.toml", load, Config), ("collector.toml", load_collector, CollectorConfig)]


@pytest.mark.parametrize("name, load_file, kind", SHIPPED, ids=lambda value: str(value)[:14])
def test_the_shipped_file_says_exactly_the_defaults(
    name: str, load_file: Callable[[Path], object], kind: Any, tmp_path: Path
) -> None:
    text = (ETC / name).read_text()
    assert load_file(write(tmp_path / "as-shipped.toml", text)) == kind()
    uncommented = re.sub(r"^#(?=[a-z_]+ = )", "", text, flags=re.MULTILINE)
    assert load_file(write(tmp_path / "uncommented.toml", uncommented)) == kind()
    written = set(re.findall(r"^([a-z_]+) = ", uncommented, flags=re.MULTILINE))
    assert written == set(config._homes(kind)) | (
            {"org", "approvers"} if kind is CollectorConfig else set()
        )


def test_a_changed_value_in_the_shipped_file_is_seen(tmp_path: Path) -> None:
    text = (ETC / "recuse.toml").read_text()
    assert loaded(tmp_path, text.replace("#notice = true", "notice = false")) != Config()


@pytest.mark.parametrize(
    "manual, kinds",
    [("recuse.toml.5", (Config, CollectorConfig))],
    ids=["recuse.toml.5"],
)
def test_the_manual_has_every_key(manual: str, kinds: Any) -> None:
    text = (ETC.parents[1] / "docs/man" / manual).read_text()
    documented = set(re.findall(r"^\.It Cm (\w+)", text, flags=re.MULTILINE))
    keys = {"org", "approvers"}.union(*(config._homes(kind) for kind in kinds))
    assert documented == keys


# -----------------------------------------------------------------------------
# Values


def test_every_key_can_be_set(tmp_path: Path) -> None:
    text = """
[host]
name = "web-1.example.org"
org = "example.org/europe"
tags = ["pci", "production", "rack 7"]
[central]
url = "https://collector.example.org:8443"
ca = "/etc/recuse/ca.pem"
[session]
notice = false
capture_bytes = 0
rate = "1 MiB"
burst = 0
size = 0
on_limit = "end"
user_sessions = 30
user_live = "2 GiB"
user_volume = 0
user_period = "1h"
on_user_limit = "gap"
on_agent_failure = "refuse"
on_spool_full = "terminate"
recovery_groups = ["wheel", "domain admins"]
ignored_services = []
transfer = ["/opt/sftp"]
input = true
[spool]
min_free = "1 GiB"
reserve = 1048576
keep = "7d"
segment_seconds = "1m"
segment_bytes = "1MB"
[ledger]
heartbeat_seconds = 60
"""
    seen = loaded(tmp_path, text)
    assert dataclasses.asdict(seen) == {
        "host": {
            "name": "web-1.example.org",
            "org": "example.org/europe",
            "tags": {"pci", "production", "rack 7"},
        },
        "central": {
            "url": "https://collector.example.org:8443",
            "ca": Path("/etc/recuse/ca.pem"),
        },
        "session": {
            "notice": False,
            "capture_bytes": 0,
            "rate": 1 << 20,
            "burst": 0,
            "size": 0,
            "on_limit": "end",
            "user_sessions": 30,
            "user_live": 2 << 30,
            "user_volume": 0,
            "user_period": 3600,
            "on_user_limit": "gap",
            "on_agent_failure": "refuse",
            "on_spool_full": "terminate",
            "recovery_groups": ("wheel", "domain admins"),
            "ignored_services": (),
            "transfer": ("/opt/sftp",),
            "input": True,
        },
        "spool": {
            "min_free": 1 << 30,
            "reserve": 1 << 20,
            "keep": 7 * 86400,
            "segment_seconds": 60,
            "segment_bytes": 10**6,
        },
        "ledger": {"heartbeat_seconds": 60},
    }
    assert seen.central.directory is None


def test_the_collector_can_be_set(tmp_path: Path) -> None:
    text = """
org = "example.org"
[listen]
host = "192.0.2.1"
port = 443
[tls]
cert = "/c"
key = "/k"
[store]
path = "/srv/recuse"
"""
    seen = load_collector(write(tmp_path / "c.toml", text))
    assert (seen.org, seen.listen.host, seen.listen.port) == ("example.org", "192.0.2.1", 443)
    assert (seen.tls.cert, seen.tls.key, seen.store.path) == (
        Path("/c"), Path("/k"), Path("/srv/recuse"),
    )  # fmt: skip


@pytest.mark.parametrize(
    "text, size",
    [("0B", 0), ("64 MiB", 64 << 20), ("64MiB", 64 << 20), ("1 kB", 1000), ("2 tib", 2 << 40)],
)
def test_size(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text, words",
    [
        ("64", "is no size"),
        ("64M", "can be read in two ways: write MiB or MB"),
        ("64k", "can be read in two ways: write KiB or kB"),
        ("1.5 GiB", "is no size"),
        ("-1 B", "is no size"),
        ("", "is no size"),
        ("1  kB", "is no size"),
        ("1 parsec", "is no size"),
        ("٣ kB", "is no size"),
    ],
)
def test_no_size(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        parse_size(text)


@pytest.mark.parametrize(
    "text, seconds",
    [("0s", 0), ("30s", 30), ("5m", 300), ("1h 30m", 5400), ("1h30m", 5400), ("2d", 172800)],
)
def test_duration(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["30", "", "5 m", "-1s", "1w", "1.5h", "h"])
def test_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration"):
        parse_duration(text)


# -----------------------------------------------------------------------------
# Faults

FAULTS = [
    ("[sesion]", 1, "unknown key 'sesion'; did you mean 'session'?"),
    ("[session]\nnotise = true", 2, "unknown key 'notise'; did you mean 'notice'?"),
    ("[session]\n\nmin_free = 1", 3, "unknown key 'min_free'; it belongs into [spool]"),
    ("input = true", 1, "unknown key 'input'; it belongs into [session]"),
    ("session = 3", 1, "'session' must be a table, not an integer"),
    ('[session]\nnotice = "yes"', 2, "'notice' must be true or false, not a string"),
    ("[session]\ncapture_bytes = -1", 2, "'capture_bytes' must be 0 to 1099511627776, not -1"),
    ('[session]\ncapture_bytes = "64M"', 2, "can be read in two ways"),
    ("[session]\ncapture_bytes = true", 2, "must be an integer, or a string with a unit, not true"),
    ("[session]\ncapture_bytes = 1.5", 2, "must be an integer, or a string with a unit, not a fl"),
    ('[session]\non_agent_failure = "refuze"', 2, "did you mean 'refuse'?"),
    ('[session]\non_spool_full = "x"', 2, "unknown value 'x' for 'on_spool_full': one of stub, "),
    ("[session]\non_spool_full = 1", 2, "'on_spool_full' must be a string, not an integer"),
    ('[session]\ntransfer = ["sftp-server"]', 2, "'sftp-server' is no absolute path of a program"),
    ('[session]\ntransfer = ["/a b"]', 2, "'/a b' is no absolute path"),
    ('[session]\nignored_services = [\n"cron",\n"a b",\n]', 4, "'a b' is no name of a service"),
    (
        '[session]\nrecovery_groups = "wheel"',
        2,
        "must be a list of strings, not a string: write ['",
    ),
    ('[host]\nname = "a b"', 2, "'a b' is no host name"),
    ('[host]\nname = "a/b"', 2, "'a/b' is no host name"),
    ('[host]\norg = ""', 2, "'' is no name of an organisation"),
    ('[host]\norg = "a+b"', 2, "'a+b' is no name of an organisation"),
    ('[host]\ntags = ["!x"]', 2, "'!x' is no tag"),
    ('[central]\nurl = "http://c"', 2, "'http://c': recordings go over https: only"),
    ('[central]\nurl = "dir:relative"', 2, "is neither dir:/PATH nor https://HOST"),
    ('[central]\nurl = "https://u:p@h"', 2, "is neither dir:/PATH nor https://HOST"),
    ('[central]\nca = "ca.pem"', 2, "'ca.pem' is no absolute path"),
    ('[spool]\nreserve = "4 KiB"', 2, "'reserve' must be 1048576 to"),
    ('[spool]\nkeep = "1w"', 2, "'1w' is no duration"),
    ("[spool]\nsegment_seconds = 0", 2, "'segment_seconds' must be 1 to 3600, not 0"),
    ('[spool]\nsegment_bytes = "1 KiB"', 2, "'segment_bytes' must be 4096 to 67108864, not 1024"),
    ("[ledger]\nheartbeat_seconds = 1", 2, "must be 10 to 86400, not 1"),
    ("a = 1\na = 2", 2, "not valid TOML: cannot overwrite a value"),
]


@pytest.mark.parametrize("text, line, words", FAULTS, ids=[text for text, _, _ in FAULTS])
def test_fault(text: str, line: int, words: str, tmp_path: Path) -> None:
    (fault,) = faults_of(load, tmp_path, text)
    assert fault.startswith(f"f.toml:{line}: ")
    assert words in fault


@pytest.mark.parametrize(
    "text, line, words",
    [
        ("[listen]\nport = 0", 2, "'port' must be 1 to 65535, not 0"),
        ('[listen]\nport = "https"', 2, "'port' must be an integer, not a string"),
        ('[listen]\nhost = "a b"', 2, "'a b' is no address or host name"),
        ('[tls]\ncert = "c.pem"', 2, "'c.pem' is no absolute path"),
        ('[tls]\ncertificate = "/c.pem"', 2, "unknown key 'certificate'"),
        ('[store]\norg = "x"', 2, "unknown key 'org'"),
        ("port = 1", 1, "unknown key 'port'; it belongs into [listen]"),
    ],
)
def test_fault_of_the_collector(text: str, line: int, words: str, tmp_path: Path) -> None:
    (fault,) = faults_of(load_collector, tmp_path, text)
    assert fault.startswith(f"f.toml:{line}: ")
    assert words in fault


def test_all_faults_are_reported_in_order(tmp_path: Path) -> None:
    text = "[spool]\nkeep = 'x'\n[host]\nnme = 1\n[session]\ninput = 1\nnotice = 2\n"
    lines = [fault.split(": ")[0] for fault in faults_of(load, tmp_path, text)]
    assert lines == ["f.toml:2", "f.toml:4", "f.toml:6", "f.toml:7"]


# -----------------------------------------------------------------------------
# Paths

PATHS = {
    "etc": "etc/recuse",
    "config": "etc/recuse/recuse.toml",
    "collector_config": "etc/recuse/collector.toml",
    "policy_dir": "etc/recuse/policy.d",
    "approval_dir": "etc/recuse/approval.d",
    "approvers": "etc/recuse/approvers",
    "revoked_keys": "etc/recuse/revoked-keys",
    "notices_dir": "etc/recuse/notices.d",
    "disabled": "etc/recuse/disabled",
    "overlay_dir": "etc/recuse/overlay.d",
    "collector_pub": "etc/recuse/collector.pub",
    "state": "var/lib/recuse",
    "host_key": "var/lib/recuse/host.key",
    "host_pub": "var/lib/recuse/host.pub",
    "wiring": "var/lib/recuse/wiring.json",
    "epoch": "var/lib/recuse/epoch",
    "ledger": "var/lib/recuse/ledger",
    "sessions": "var/lib/recuse/sessions",
    "spool": "var/spool/recuse",
    "ship_state": "var/lib/recuse-ship",
    "receipts": "var/lib/recuse-ship/receipts",
    "upload_key": "var/lib/recuse-ship/upload.key",
    "notify_config": "etc/recuse/notify.toml",
    "notify_state": "var/lib/recuse-notify",
    "notify_socket": "run/recuse-notify/notify.sock",
    "run": "run/recuse",
    "host_socket": "run/recuse/host.sock",
    "control_socket": "run/recuse/control.sock",
    "consult_socket": "run/recuse/consult.sock",
    "fallback_link": "run/recuse/fallback",
}


@pytest.mark.parametrize("root", ["/", "/tmp/x"])
def test_every_path_is_under_the_root(root: str) -> None:
    for paths in (Paths(Path(root)), Paths(root=root)):  # type: ignore[arg-type]
        seen = {name: getattr(paths, name) for name in PATHS}
        assert seen == {name: Path(root) / path for name, path in PATHS.items()}
    properties = [name for name in vars(Paths) if isinstance(vars(Paths)[name], property)]
    assert set(properties) == set(PATHS)


def test_paths_agree_with_the_host_module() -> None:
    header = (ETC.parents[1] / "pam_hook/wire.h").read_text()
    defined = dict(re.findall(r'#define (RECUSE_[A-Z_]+) +"(/[^"]+)"', header))
    paths = Paths()
    assert defined["RECUSE_HOST_SOCKET"] == str(paths.host_socket)
    assert defined["RECUSE_DISABLED"] == str(paths.disabled)
    assert defined["RECUSE_OVERLAY_DIR"] == str(paths.overlay_dir)
    assert defined["RECUSE_FALLBACK_LINK"] == str(paths.fallback_link)
    words = re.findall(r'#define RECUSE_FALLBACK_[A-Z]+ +"([a-z-]+)"', header)
    assert set(words) == set(config.FALLBACKS)


# -----------------------------------------------------------------------------
# Whose files are trusted


def policy_faults(path: Path) -> List[str]:
    with pytest.raises(PolicyError) as caught:
        read_policy_dir(path)
    return [str(fault).replace(f"{path}", "DIR") for fault in caught.value.faults]


def test_policy_files_are_read_sorted_and_others_left_alone(tmp_path: Path) -> None:
    for name in ("b.toml", "a.toml", ".#a.toml", "a.toml~", "README", "c.toml.dpkg-dist"):
        write(tmp_path / name, name)
    (tmp_path / ".hidden.toml").symlink_to("nowhere")
    assert read_policy_dir(tmp_path) == [
        (f"{tmp_path}/a.toml", b"a.toml"),
        (f"{tmp_path}/b.toml", b"b.toml"),
    ]


def test_a_missing_policy_directory_is_an_empty_one(tmp_path: Path) -> None:
    assert read_policy_dir(tmp_path / "none") == []


def test_a_policy_directory_that_is_none_is_a_fault(tmp_path: Path) -> None:
    path = write(tmp_path / "file", "")
    assert policy_faults(path) == ["DIR: cannot be read: not a directory"]


@pytest.mark.usefixtures("owners")
def test_root_refuses_policy_files_that_others_could_have_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.toml", "", 0o664)
    write(tmp_path / "b.toml", "", 0o646)
    write(tmp_path / "c.toml", "", 0o600)
    (tmp_path / "d.toml").mkdir(0o755)
    os.mkfifo(tmp_path / "e.toml", 0o600)
    (tmp_path / "f.toml").symlink_to("nowhere")
    (tmp_path / "g.toml").symlink_to("a.toml")
    monkeypatch.setattr(config, "MAX_FILE", 3)
    write(tmp_path / "h.toml", "#" * 4)
    assert policy_faults(tmp_path) == [
        "DIR/a.toml: mode 0664 lets others than root write to it",
        "DIR/b.toml: mode 0646 lets others than root write to it",
        "DIR/d.toml: not a regular file",
        "DIR/e.toml: not a regular file",
        "DIR/f.toml: there is no such file",
        "DIR/g.toml: mode 0664 lets others than root write to it",
        "DIR/h.toml: larger than 3 bytes",
    ]


def test_root_refuses_files_of_somebody_else(tmp_path: Path, owners: Dict[str, int]) -> None:
    owners[str(write(tmp_path / "a.toml", ""))] = 1000
    write(tmp_path / "b.toml", "")
    assert policy_faults(tmp_path) == ["DIR/a.toml: owned by uid 1000, not by root"]


def test_root_refuses_a_directory_of_somebody_else(tmp_path: Path, owners: Dict[str, int]) -> None:
    owners[str(tmp_path)] = 1000
    assert policy_faults(tmp_path) == ["DIR: owned by uid 1000, not by root"]


@pytest.mark.usefixtures("owners")
def test_root_follows_links_to_good_files(tmp_path: Path) -> None:
    (tmp_path / "policy.d").mkdir(0o755)
    write(tmp_path / "shared", "# shared\n")
    (tmp_path / "policy.d/a.toml").symlink_to("../shared")
    assert read_policy_dir(tmp_path / "policy.d") == [
        (f"{tmp_path}/policy.d/a.toml", b"# shared\n")
    ]


@pytest.mark.usefixtures("owners")
def test_root_refuses_a_directory_that_others_can_write_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    assert policy_faults(tmp_path) == ["DIR: mode 0777 lets others than root write to it"]


@pytest.mark.usefixtures("owners")
def test_root_refuses_a_configuration_that_others_could_have_written(tmp_path: Path) -> None:
    path = write(tmp_path / "recuse.toml", "", 0o666)
    with pytest.raises(ConfigError) as caught:
        load(path)
    (fault,) = caught.value.faults
    assert str(fault) == f"{path}: mode 0666 lets others than root write to it"


def test_others_may_check_files_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "_is_root", lambda: False)
    write(tmp_path / "a.toml", "", 0o666)
    assert len(read_policy_dir(tmp_path)) == 1
