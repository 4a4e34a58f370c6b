"""What notify.toml says: the channels on which admins are told, and the routes that lead there.

recuse-notify.toml(5) documents every key.  The fields below are the one list of keys, defaults and
checks.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple
from urllib.parse import urlsplit

from recuse.adminnotice import KNOWN_KINDS, SEVERITIES, Route, parse_secret
from recuse.config import (  # the machinery of recuse.toml
    AnyPath,
    _boolean,
    _choice,
    _key,
    _number,
    _optional_path,
    _path,
    _read_table,
    _read_trusted,
    _text,
    _texts,
    _Untrusted,
)
from recuse.errors import ConfigError, Fault, count_faults
from recuse.records import OUTCOMES
from recuse.tomlfile import Key, TomlFile, did_you_mean, parse_duration

TYPES = ("smtp", "webhook", "apprise")
TLS = ("starttls", "tls", "none")
MAX_SECRET = 64 << 10

_CHANNEL_NAME = "[a-z0-9]([a-z0-9._-]{0,30}[a-z0-9])?"
_ADDRESS = r"[^\s@<>,;:\"()\[\]\\]+@[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?"
_PATTERN = r"!?[^!\s\0][^\n\0]*"
_KEYS_OF = {
    "smtp": {"host", "port", "tls", "ca", "sender", "to", "credentials"},
    "webhook": {"url", "secret", "ca"},
    "apprise": {"urls"},
}
_NEEDED = {"smtp": ("host", "sender", "to"), "webhook": ("url", "secret"), "apprise": ("urls",)}


def _webhook_url(file: TomlFile, key: Key, value: object) -> Optional[str]:
    text = file.string(key, value)
    if text is None:
        return None
    # What it holds may be a secret: it is not repeated.
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or any(c.isspace() or not c.isprintable() for c in text):
        file.fault(key, "'url' is not of the form https://HOST[:PORT][/PATH]")
    elif parts.username is not None or parts.fragment:
        file.fault(key, "'url' may have neither a user name nor a fragment")
    elif parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host)):
        return text
    else:
        file.fault(key, "'url' must be https:, or http: on this host")
    return None


def is_loopback(host: str) -> bool:
    """Say whether what is sent there stays on this host."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Channel:
    """One way to tell admins; times in seconds."""

    type: str = _key("", _choice(*TYPES))
    quiet: bool = _key(False, _boolean)
    commands: bool = _key(False, _boolean)
    rate: int = _key(60, _number(1, 100000))
    max_age: int = _key(7 * 86400, _number(60, 3650 * 86400, parse_duration))
    dead_after: int = _key(300, _number(1, 30 * 86400, parse_duration))
    timeout: int = _key(20, _number(1, 300, parse_duration))
    # smtp
    host: str = _key("", _text(r"[0-9A-Za-z.:_-]+", "address or host name"))
    port: int = _key(0, _number(1, 65535))
    tls: str = _key("starttls", _choice(*TLS))
    ca: Optional[Path] = _key(None, _optional_path)
    sender: str = _key("", _text(_ADDRESS, "mail address"))
    to: Tuple[str, ...] = _key((), _texts(_ADDRESS, "mail address"))
    credentials: Optional[Path] = _key(None, _path)
    # webhook
    url: str = _key("", _webhook_url)
    secret: Optional[Path] = _key(None, _path)
    # apprise
    urls: Optional[Path] = _key(None, _path)

    @property
    def smtp_port(self) -> int:
        """Give the port, by default the one that is usual for this kind of TLS."""
        return self.port or {"tls": 465, "starttls": 587, "none": 25}[self.tls]


@dataclass(frozen=True)
class _RouteTable:
    name: str = _key("", _text(r"[^\s\0][^\n\0]{0,63}", "name of a route"))
    channels: Tuple[str, ...] = _key((), _texts(_CHANNEL_NAME, "name of a channel"))
    kinds: Tuple[str, ...] = _key((), _texts(_PATTERN, "pattern"))
    rules: Tuple[str, ...] = _key((), _texts(_PATTERN, "pattern"))
    users: Tuple[str, ...] = _key((), _texts(_PATTERN, "pattern"))
    services: Tuple[str, ...] = _key((), _texts(_PATTERN, "pattern"))
    outcomes: Tuple[str, ...] = _key((), _texts(_PATTERN, "pattern"))
    host_tags: Tuple[str, ...] = _key((), _texts(_PATTERN, "pattern"))
    severity: str = _key(SEVERITIES[0], _choice(*SEVERITIES))
    fold: int = _key(0, _number(0, 86400, parse_duration))


@dataclass(frozen=True)
class NotifyConfig:
    """What notify.toml says."""

    channels: Mapping[str, Channel] = dataclasses.field(default_factory=dict)
    routes: Tuple[Route, ...] = ()


def load(path: AnyPath) -> NotifyConfig:
    """Read notify.toml; a file that is not there means no channels.

    Raises: ConfigError with every fault found, by file and line.
    """
    name = os.fspath(path)
    try:
        source = _read_trusted(name)
    except FileNotFoundError:
        return NotifyConfig()
    except _Untrusted as error:
        raise ConfigError(f"{name} is not used", faults=[Fault(name, None, str(error))]) from None
    faults: List[Fault] = []
    file = TomlFile(name, source, faults)
    file.check_keys((), file.data, ("channel", "route"))
    channels = _read_channels(file)
    routes = _read_routes(file, channels)
    if faults:
        faults.sort(key=lambda fault: fault.line or 0)
        count = count_faults(len(faults))
        raise ConfigError(f"{count} in {name}", "see recuse-notify.toml(5)", faults)
    return NotifyConfig(channels, routes)


def _read_channels(file: TomlFile) -> Dict[str, Channel]:
    found: Dict[str, Channel] = {}
    check = _text(_CHANNEL_NAME, "name of a channel")
    tables = file.table(("channel",), file.data.get("channel", {}))
    for name, value in tables.items():
        key: Key = ("channel", name)
        check(file, key, name)
        table = file.table(key, value)
        channel = _read_table(Channel, file, key, table, {})
        found[name] = channel
        if channel.type in TYPES:
            _check_channel(file, key, table, channel)
        elif "type" not in table:
            file.fault(key, f"channel {name!r} has no type: one of {', '.join(TYPES)}")
    return found


def _check_channel(file: TomlFile, key: Key, table: Mapping[str, object], channel: Channel) -> None:
    """Add faults of a channel whose keys do not belong together."""
    others = {one for keys in _KEYS_OF.values() for one in keys} - _KEYS_OF[channel.type]
    for one in sorted(others & table.keys()):
        file.fault(key + (one,), f"{one!r} is not for channels of type {channel.type}")
    for one in _NEEDED[channel.type]:
        if one not in table or table[one] == []:
            file.fault(key, f"channel {key[-1]!r} of type {channel.type} needs {one!r}")
    if channel.credentials is not None and channel.tls == "none":
        if not is_loopback(channel.host):
            file.fault(key + ("credentials",), "a password is not sent without TLS")


def _read_routes(file: TomlFile, channels: Mapping[str, Channel]) -> Tuple[Route, ...]:
    tables = file.data.get("route", [])
    if not isinstance(tables, list):
        file.wrong_type(("route",), tables, "tables", ": write [[route]]")
        return ()
    found: List[Route] = []
    for position, value in enumerate(tables):
        key: Key = ("route", position)
        read = _read_table(_RouteTable, file, key, file.table(key, value), {})
        route = Route(**{one.name: getattr(read, one.name) for one in dataclasses.fields(read)})
        if not route.channels:
            file.fault(key, "the route leads to no channel: write channels = [\"NAME\"]")
        for name in route.channels:
            if name not in channels:
                hint = did_you_mean(name, channels)
                file.fault(key + ("channels",), f"there is no channel {name!r}{hint}")
        _check_words(file, key + ("kinds",), route.kinds, KNOWN_KINDS, "kind of entry")
        _check_words(file, key + ("outcomes",), route.outcomes, OUTCOMES, "outcome")
        found.append(route)
    reached = {name for route in found for name in route.channels}
    for name in channels:
        if name not in reached:
            file.fault(("channel", name), f"no route leads to channel {name!r}")
    return tuple(found)


def _check_words(
    file: TomlFile, key: Key, patterns: Sequence[str], known: Sequence[str], what: str
) -> None:
    """Add a fault for each word that is no glob and will never match: it is a typing error."""
    for place, pattern in enumerate(patterns):
        plain = pattern.lstrip("!")
        if not any(c in plain for c in "*?[") and plain not in known:
            file.fault(key + (place,), f"{plain!r} is no {what}{did_you_mean(plain, known)}")


# -----------------------------------------------------------------------------
# Files with secrets


def _read_secret(path: Path) -> List[str]:
    """Read the lines of a file that its owner and group alone may read.

    Raises: ConfigError, which shows nothing of it
    """

    def bad(why: str) -> ConfigError:
        return ConfigError(f"{path} is not used", faults=[Fault(str(path), None, why)])

    try:
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise bad("not a regular file")
            if status.st_mode & 0o007:
                mode = stat.S_IMODE(status.st_mode)
                raise bad(f"mode {mode:04o} lets everybody at a secret: chmod 640")
            text = file.read(MAX_SECRET).decode("utf-8")
    except OSError as error:
        raise bad(f"cannot be read: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError:
        raise bad("not UTF-8") from None
    lines = [line.strip() for line in text.splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise bad("nothing is in it")
    return found


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def read_credentials(path: Path) -> Tuple[str, str]:
    """Read a user name and a password, one line each. Raises: ConfigError"""
    lines = _read_secret(path)
    if len(lines) != 2:
        fault = Fault(str(path), None, "must have two lines: user name and password")
        raise ConfigError(f"{path} is not used", faults=[fault])
    return lines[0], lines[1]


def read_secrets(path: Path) -> List[bytes]:
    """Read secrets of webhooks, one a line, that in use first. Raises: ConfigError"""
    found: List[bytes] = []
    for number, line in enumerate(_read_secret(path), 1):
        try:
            found.append(parse_secret(line))
        except ValueError as error:
            fault = Fault(str(path), None, f"secret {number}: {error}")
            raise ConfigError(f"{path} is not used", faults=[fault]) from None
    return found


def read_urls(path: Path) -> List[str]:
    """Read URLs of the Apprise library, one a line. Raises: ConfigError"""
    return _read_secret(path)


def channel_json(channel: Channel) -> Dict[str, Any]:
    """Give what a channel is, for telling whether it is another one now."""
    return {key: str(value) for key, value in dataclasses.asdict(channel).items()}
