"""Configuration: where everything is, what the administrator has set, and whose files are trusted.

recuse.toml(5) documents every key.  The fields below are the one list of keys, defaults and checks.
"""

from __future__ import annotations

import dataclasses
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import (
    Any,
    Callable,
    Dict,
    FrozenSet,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Type,
    TypeVar,
    Union,
)

from recuse import amounts
from recuse.errors import ConfigError, Fault, PolicyError, count_faults
from recuse.tomlfile import Key, TomlFile, did_you_mean, parse_duration, parse_size

AnyPath = Union[str, "os.PathLike[str]"]

MAX_FILE = 16 << 20  # bytes of one configuration or policy file: some 50,000 rules

# The PAM service whose logins are only rehearsed, by checkup and for root alone. No setting takes
# it away: a rehearsal that left entries would be a login that nobody made.
REHEARSAL_SERVICE = "recuse"
FALLBACKS = ("record-locally", "refuse", "allow-with-stub")
ON_LIMIT = ("slow", "gap", "end")
FULL_SPOOL = ("stub", "refuse", "terminate")


@dataclass(frozen=True)
class Paths:
    """Every path recuse uses, under a root that tests can move."""

    root: Path = Path("/")

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))

    @property
    def etc(self) -> Path:
        return self.root / "etc/recuse"

    @property
    def config(self) -> Path:
        return self.etc / "recuse.toml"

    @property
    def collector_config(self) -> Path:
        return self.etc / "collector.toml"

    @property
    def policy_dir(self) -> Path:
        return self.etc / "policy.d"

    @property
    def approval_dir(self) -> Path:
        return self.etc / "approval.d"

    @property
    def approvers(self) -> Path:
        return self.etc / "approvers"

    @property
    def revoked_keys(self) -> Path:
        return self.etc / "revoked-keys"

    @property
    def notices_dir(self) -> Path:
        return self.etc / "notices.d"

    @property
    def disabled(self) -> Path:
        return self.etc / "disabled"

    @property
    def overlay_dir(self) -> Path:
        return self.etc / "overlay.d"

    @property
    def collector_pub(self) -> Path:
        return self.etc / "collector.pub"

    @property
    def state(self) -> Path:
        return self.root / "var/lib/recuse"

    @property
    def host_key(self) -> Path:
        return self.state / "host.key"

    @property
    def host_pub(self) -> Path:
        return self.state / "host.pub"

    @property
    def wiring(self) -> Path:
        return self.state / "wiring.json"

    @property
    def epoch(self) -> Path:
        return self.state / "epoch"

    @property
    def ledger(self) -> Path:
        return self.state / "ledger"

    @property
    def sessions(self) -> Path:
        return self.state / "sessions"

    @property
    def spool(self) -> Path:
        return self.root / "var/spool/recuse"

    @property
    def ship_state(self) -> Path:
        return self.root / "var/lib/recuse-ship"

    @property
    def receipts(self) -> Path:
        return self.ship_state / "receipts"

    @property
    def upload_key(self) -> Path:
        return self.ship_state / "upload.key"

    @property
    def notify_config(self) -> Path:
        return self.etc / "notify.toml"

    @property
    def notify_state(self) -> Path:
        return self.root / "var/lib/recuse-notify"

    @property
    def notify_socket(self) -> Path:
        return self.root / "run/recuse-notify/notify.sock"

    @property
    def run(self) -> Path:
        return self.root / "run/recuse"

    @property
    def host_socket(self) -> Path:
        return self.run / "host.sock"

    @property
    def control_socket(self) -> Path:
        return self.run / "control.sock"

    @property
    def consult_socket(self) -> Path:
        return self.run / "consult.sock"

    @property
    def fallback_link(self) -> Path:
        return self.run / "fallback"


# -----------------------------------------------------------------------------
# Values


_Check = Callable[[TomlFile, Key, object], Any]
"""Turn a value of the file into that of the field; None after having added a fault."""


def _boolean(file: TomlFile, key: Key, value: object) -> Optional[bool]:
    return file.boolean(key, value)


def _number(low: int, high: int, parse: Optional[Callable[[str], int]] = None) -> _Check:
    """Check an integer, or a string that `parse` turns into one."""

    def check(file: TomlFile, key: Key, value: object) -> Optional[int]:
        if isinstance(value, str) and parse is not None:
            try:
                number = parse(value)
            except ValueError as error:
                file.fault(key, str(error))
                return None
        elif isinstance(value, int) and not isinstance(value, bool):
            number = value
        else:
            wanted = "an integer" if parse is None else "an integer, or a string with a unit"
            file.wrong_type(key, value, wanted)
            return None
        if not low <= number <= high:
            file.fault(key, f"{key[-1]!r} must be {low} to {high}, not {number}")
            return None
        return number

    return check


def _choice(*known: str) -> _Check:
    def check(file: TomlFile, key: Key, value: object) -> Optional[str]:
        text = file.string(key, value)
        if text is not None and text not in known:
            hint = did_you_mean(text, known) or f": one of {', '.join(known)}"
            file.fault(key, f"unknown value {text!r} for {key[-1]!r}{hint}")
            return None
        return text

    return check


def _text(pattern: str, what: str) -> _Check:
    def check(file: TomlFile, key: Key, value: object) -> Optional[str]:
        text = file.string(key, value)
        if text is not None and not re.fullmatch(pattern, text, re.ASCII):
            file.fault(key, f"{text!r} is no {what}")
            return None
        return text

    return check


def _texts(pattern: str, what: str, make: Callable[[Sequence[str]], Any] = tuple) -> _Check:
    def check(file: TomlFile, key: Key, value: object) -> Any:
        found = []
        for place, text in file.strings(key, value):
            if re.fullmatch(pattern, text, re.ASCII):
                found.append(text)
            else:
                file.fault(place, f"{text!r} is no {what}")
        return make(found)

    return check


def _path(file: TomlFile, key: Key, value: object) -> Optional[Path]:
    text = file.string(key, value)
    if text is not None and not text.startswith("/"):
        file.fault(key, f"{text!r} is no absolute path")
        return None
    return None if text is None else Path(text)


def _optional_path(file: TomlFile, key: Key, value: object) -> Optional[Path]:
    return None if value == "" else _path(file, key, value)


def _url(file: TomlFile, key: Key, value: object) -> Optional[str]:
    text = file.string(key, value)
    if text is None:
        return None
    if text.startswith("http:"):
        file.fault(key, f"{text!r}: recordings go over https: only")
    elif not re.fullmatch(r"dir:/[^\0\n]*|https://[^/\s?#@]+(/[^\s?#]*)?", text):
        file.fault(key, f"{text!r} is neither dir:/PATH nor https://HOST[:PORT][/PATH]")
    else:
        return text
    return None


_NAME = "[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?"
_ORG = f"{_NAME}(/{_NAME})*"


def _key(default: Any, check: _Check) -> Any:
    return field(default=default, metadata={"check": check})


# -----------------------------------------------------------------------------
# The host's configuration


@dataclass(frozen=True)
class HostConfig:
    name: str = _key("", _text(f"({_NAME})?", "host name"))  # "": the system's
    org: str = _key("local", _text(_ORG, "name of an organisation, such as example.org"))
    tags: FrozenSet[str] = _key(
        frozenset(), _texts(r"[^\s!,\0]([^\n,\0]*[^\s,\0])?", "tag", frozenset)
    )


@dataclass(frozen=True)
class CentralConfig:
    url: str = _key("dir:/var/lib/recuse-central", _url)
    ca: Optional[Path] = _key(None, _optional_path)  # PEM; None: the system's authorities

    @property
    def directory(self) -> Optional[Path]:
        """The directory of a central store on this host; None if the store is a collector."""
        return Path(self.url[len("dir:") :]) if self.url.startswith("dir:") else None


@dataclass(frozen=True)
class SessionConfig:
    notice: bool = _key(True, _boolean)
    capture_bytes: int = _key(64 << 10, _number(0, 1 << 40, parse_size))
    rate: int = _key(8 << 20, _number(0, 1 << 40, parse_size))  # bytes a second; 0: no limit
    burst: int = _key(256 << 20, _number(0, 1 << 40, parse_size))
    size: int = _key(4 << 30, _number(0, 1 << 50, parse_size))  # of a recording; 0: no limit
    on_limit: str = _key("slow", _choice(*ON_LIMIT))
    user_sessions: int = _key(2000, _number(0, 1_000_000))  # at once; 0: no limit
    user_live: int = _key(4 << 30, _number(0, 1 << 50, parse_size))  # of all that is live
    user_volume: int = _key(8 << 30, _number(0, 1 << 50, parse_size))  # in user_period
    user_period: int = _key(86400, _number(1, 366 * 86400, parse_duration))  # seconds
    on_user_limit: str = _key("slow", _choice(*ON_LIMIT))
    on_agent_failure: str = _key("record-locally", _choice(*FALLBACKS))
    on_spool_full: str = _key("stub", _choice(*FULL_SPOOL))
    recovery_groups: Tuple[str, ...] = _key(("root",), _texts(r"[^!\n\0]+", "name of a group"))
    ignored_services: Tuple[str, ...] = _key(
        ("cron", "crond", "atd", "systemd-user"), _texts("[A-Za-z0-9._@-]+", "name of a service")
    )
    transfer: Tuple[str, ...] = _key(
        ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server"),
        _texts(r"/[^\s\0]+", "absolute path of a program"),
    )
    input: bool = _key(False, _boolean)

    def ignores(self, service: str) -> bool:
        """Whether logins by that PAM service are none, and get no entry."""
        return service == REHEARSAL_SERVICE or service in self.ignored_services


@dataclass(frozen=True)
class SpoolConfig:
    min_free: int = _key(64 << 20, _number(0, 1 << 50, parse_size))
    reserve: int = _key(16 << 20, _number(1 << 20, 1 << 40, parse_size))
    keep: int = _key(0, _number(0, 3650 * 86400, parse_duration))  # seconds
    segment_seconds: int = _key(30, _number(1, 3600, parse_duration))
    segment_bytes: int = _key(512 << 10, _number(4 << 10, 64 << 20, parse_size))


@dataclass(frozen=True)
class LedgerConfig:
    heartbeat_seconds: int = _key(300, _number(10, 86400, parse_duration))


@dataclass(frozen=True)
class Config:
    """What recuse.toml says; sizes are in bytes, durations in seconds."""

    host: HostConfig = HostConfig()
    central: CentralConfig = CentralConfig()
    session: SessionConfig = SessionConfig()
    spool: SpoolConfig = SpoolConfig()
    ledger: LedgerConfig = LedgerConfig()


# -----------------------------------------------------------------------------
# The collector's configuration


@dataclass(frozen=True)
class ListenConfig:
    host: str = _key("::", _text(r"[0-9A-Za-z.:_-]+", "address or host name"))
    port: int = _key(8443, _number(1, 65535))


@dataclass(frozen=True)
class TlsConfig:
    cert: Path = _key(Path("/etc/recuse/collector.crt"), _path)
    key: Path = _key(Path("/etc/recuse/collector.key"), _path)


@dataclass(frozen=True)
class StoreConfig:
    path: Path = _key(Path("/var/lib/recuse-collector"), _path)


@dataclass(frozen=True)
class CollectorConfig:
    """What collector.toml says."""

    org: str = _key("local", _text(_ORG, "name of an organisation, such as example.org"))
    approvers: Path = _key(Path("/etc/recuse/collector-approvers"), _path)
    listen: ListenConfig = ListenConfig()
    tls: TlsConfig = TlsConfig()
    store: StoreConfig = StoreConfig()


# -----------------------------------------------------------------------------
# Loading

_T = TypeVar("_T")


def load(path: AnyPath) -> Config:
    """Read recuse.toml; a file that is not there means the defaults.

    Raises: ConfigError with every fault found, by file and line.
    """
    return _load(Config, path, "recuse.toml(5)")


def load_collector(path: AnyPath) -> CollectorConfig:
    """Read collector.toml; a file that is not there means the defaults.

    Raises: ConfigError with every fault found, by file and line.
    """
    return _load(CollectorConfig, path, "recuse-collector(8)")


def _load(kind: Type[_T], path: AnyPath, manual: str) -> _T:
    name = os.fspath(path)
    try:
        source = _read_trusted(name)
    except FileNotFoundError:
        return kind()
    except _Untrusted as error:
        faults = [Fault(name, None, str(error))]
        raise ConfigError(f"{name} is not used", faults=faults) from None
    found: List[Fault] = []
    file = TomlFile(name, source, found)
    config = _read_table(kind, file, (), file.data, _homes(kind))
    if found:
        found.sort(key=lambda fault: fault.line or 0)
        count = count_faults(len(found))
        raise ConfigError(f"{count} in {name}", f"see {manual}", found)
    return config


def _fields(kind: type) -> Dict[str, Any]:
    return {item.name: item for item in dataclasses.fields(kind)}


def _homes(kind: type) -> Dict[str, str]:
    """Say of each key of a section which section it belongs to."""
    sections = [item for item in _fields(kind).values() if "check" not in item.metadata]
    return {name: item.name for item in sections for name in _fields(type(item.default))}


def _read_table(
    kind: Type[_T], file: TomlFile, key: Key, table: Mapping[str, object], homes: Mapping[str, str]
) -> _T:
    """Make a dataclass of a table; what is wrong or missing gets the field's default."""
    fields = _fields(kind)
    values: Dict[str, Any] = {}
    for name, value in table.items():
        place = key + (name,)
        if name not in fields:
            hint = did_you_mean(name, fields)
            if name in homes:
                hint = f"; it belongs into [{homes[name]}]"
            file.fault(place, f"unknown key {name!r}{hint}")
            continue
        check = fields[name].metadata.get("check")
        if check is None:
            section = type(fields[name].default)
            values[name] = _read_table(section, file, place, file.table(place, value), homes)
            continue
        checked = check(file, place, value)
        if checked is not None:
            values[name] = checked
    return kind(**values)


# -----------------------------------------------------------------------------
# Files that only root may have written


class _Untrusted(Exception):
    pass


def read_trusted(path: AnyPath) -> bytes:
    """Read a file that nobody but root may have written. Raises: FileNotFoundError, ConfigError"""
    try:
        return _read_trusted(path)
    except _Untrusted as error:
        fault = Fault(os.fspath(path), None, str(error))
        raise ConfigError(f"{os.fspath(path)} is not used", faults=[fault]) from None


def _read_trusted(path: AnyPath) -> bytes:
    """Read a file; for root, only if nobody but root could have written it.

    A symbolic link is as good as the file it leads to.

    Raises: FileNotFoundError; an error saying why the file is not used.
    """
    try:
        # Not to wait for a writer, should it be a pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _Untrusted(f"cannot be read: {_strerror(error)}") from None
    try:
        status = _status(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _Untrusted("not a regular file")
        _check_owner(status)
        if status.st_size > MAX_FILE:
            raise _Untrusted(f"larger than {MAX_FILE} bytes")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(MAX_FILE)
    finally:
        os.close(descriptor)


def _status(file: Union[int, str]) -> os.stat_result:
    return os.stat(file)


def _is_root() -> bool:
    return os.geteuid() == 0


def _check_owner(status: os.stat_result) -> None:
    if not _is_root():
        return
    if status.st_uid != 0:
        raise _Untrusted(f"owned by uid {status.st_uid}, not by root")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(status.st_mode)
        raise _Untrusted(f"mode {mode:04o} lets others than root write to it")


def _strerror(error: OSError) -> str:
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]


def read_policy_dir(path: AnyPath) -> List[Tuple[str, bytes]]:
    """Read the files *.toml of a policy directory, sorted, each with its path.

    Hidden files are left out; a directory that is not there is an empty one.

    Raises: PolicyError with every file that cannot be read or, for root, that others than root
    could have written.
    """
    directory = os.fspath(path)
    try:
        names = sorted(os.listdir(directory))
        _check_owner(_status(directory))
    except FileNotFoundError:
        return []
    except OSError as error:
        fault = Fault(directory, None, f"cannot be read: {_strerror(error)}")
        raise PolicyError(f"{directory} is not used", faults=[fault]) from None
    except _Untrusted as error:
        fault = Fault(directory, None, str(error))
        raise PolicyError(f"{directory} is not used", faults=[fault]) from None
    files, faults = [], []
    for name in names:
        if not name.endswith(".toml") or name.startswith("."):
            continue
        file = os.path.join(directory, name)
        try:
            files.append((file, _read_trusted(file)))
        except FileNotFoundError:
            faults.append(Fault(file, None, "there is no such file"))
        except _Untrusted as error:
            faults.append(Fault(file, None, str(error)))
    if faults:
        count = amounts.number(len(faults), "file")
        raise PolicyError(f"{count} of the policy not used", faults=faults)
    return files
