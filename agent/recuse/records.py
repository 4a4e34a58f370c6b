"""What the entries of a ledger say: OCSF 1.8.0 events, and the sessions they add up to.

Pure. Builders turn facts into the exact bytes that are hashed and signed; parse() reads them back;
fold() turns entries into logins and sessions. docs/formats.md lists the fields of each kind.

Strings that users control must have been decoded with text(): an entry is UTF-8 whatever they sent.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import (
    Any,
    Dict,
    FrozenSet,
    Iterable,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Union,
    cast,
)

from . import amounts, strictjson
from .asks import answer_to_json
from .errors import LedgerError
from .facts import facts_to_json
from .policy import Decision

OCSF_VERSION = "1.8.0"
MAX_ENTRY_BYTES = 16384
"""The longest entry: commands and lists are cut, and marked as cut, until one fits."""

KINDS = (
    "start",
    "stop",
    "heartbeat",
    "policy",
    "login",
    "logout",
    "open",
    "exempt",
    "refused",
    "segment",
    "close",
    "recovered",
    "finding",
    "undelivered",
)
OUTCOMES = ("recorded", "partial", "exempt", "refused", "failed", "lost")
GAP_CAUSES = ("limit", "fault", "pause", "exempt")
DEFAULT_HEARTBEAT_SECONDS = 300

AUTHENTICATION = 3002
EVENT_LOG = 1008
DETECTION_FINDING = 2004
_LOGON, _LOGOFF, _ACCOUNT_SWITCH = 1, 2, 7
_START, _STOP, _DISABLE, _OTHER = 6, 7, 10, 99
_CREATE = 1
_INFORMATIONAL, _LOW, _MEDIUM, _HIGH = 1, 2, 3, 4
_SUCCESS, _FAILURE, _OTHER_STATUS = 1, 2, 99
_SWITCHES = frozenset({"su", "su-l", "sudo", "sudo-i", "runuser", "runuser-l", "doas"})

Json = Dict[str, Any]


# What entries are made of


@dataclass(frozen=True)
class Host:
    """The host whose ledger this is; origin names the ledger and its epoch."""

    origin: str
    hostname: str
    machine_id: str
    boot_id: str
    os_name: str
    version: str


@dataclass(frozen=True)
class Source:
    """Where a login came from: what the kernel says, and what PAM was told."""

    kernel: Optional[str] = None
    """"192.0.2.7:40112" or "[2001:db8::1]:99"; None if local or not to be found out."""
    claimed: Optional[str] = None

    @property
    def address(self) -> Optional[str]:
        """Give what the kernel says, without the port."""
        return None if self.kernel is None else split_endpoint(self.kernel)[0]


@dataclass(frozen=True)
class Login:
    """One PAM session, open to close."""

    id: str
    user: str
    uid: int
    auid: Optional[int]
    audit_session: Optional[int]
    service: str
    source: Source
    tty: Optional[str]
    ruser: Optional[str]
    pid: int
    started_ns: int
    outer: Optional[str] = None


@dataclass(frozen=True)
class Session:
    """One shell, command or transfer in a login."""

    id: str
    login: Login
    kind: str
    """shell, command, transfer, nested or none"""
    tty: Optional[str]
    command: Optional[str]
    command_cut: bool
    shell: str
    pid: int
    started_ns: int
    mono_ns: int
    """CLOCK_MONOTONIC at started_ns; times in the recording count from it."""
    term: str = ""
    lang: str = ""
    rows: int = 0
    cols: int = 0
    claimed_tags: Tuple[str, ...] = ()
    late: bool = False
    """Recorded while the agent was away; entered afterwards."""
    notes: Tuple[str, ...] = ()
    command_sha256: Optional[str] = None
    """In place of the command, of a session of which not even that is kept."""
    notice_sha256: Optional[str] = None
    """Of the notice that was shown on the terminal, byte by byte."""
    notice_language: Optional[str] = None
    agreed: Optional[str] = None
    """When the user agreed to it, if asked to, as format_time() writes it."""


@dataclass(frozen=True)
class Gap:
    """Bytes of a stream that were counted, and hashed unless withheld, but not kept."""

    cause: str
    """one of GAP_CAUSES"""
    stream: str
    """asciicast code of the stream: o, i or e"""
    bytes: int
    sha256: str
    lines: Optional[int] = None
    """counted where not even a hash is kept"""


@dataclass(frozen=True)
class Segment:
    """One piece of a recording, sealed in a blob; t0 and t1 in seconds since its start."""

    session: str
    n: int
    blob: str
    size: int
    plain_size: int
    t0: float
    t1: float
    events: int
    replaced: int = 0
    """runs of bytes that asciicast text could not hold"""
    gaps: Tuple[Gap, ...] = ()


@dataclass(frozen=True)
class Grounds:
    """The part of a decision that a close repeats; what the agent keeps of a live session."""

    rule: Optional[str] = None
    effect: Optional[str] = None
    reason: Optional[str] = None
    owner: Optional[str] = None
    expires: Optional[str] = None
    policy: Optional[str] = None
    grant: Optional[str] = None
    level: Optional[str] = None
    supervised: Optional[bool] = None
    reason_code: Optional[str] = None
    pause_seconds: Optional[int] = None

    @classmethod
    def of(cls, decision: Decision) -> Grounds:
        """Take the grounds out of a decision."""
        return cls(**_grounds(decision))


def _grounds(decision: Decision) -> Json:
    return {
        "rule": decision.rule,
        "effect": decision.effect,
        "reason": decision.reason,
        "owner": decision.owner,
        "expires": decision.expires,
        "policy": decision.policy,
        "grant": decision.grant,
        "level": decision.level,
        "supervised": decision.supervised or None,
        "reason_code": decision.reason_code,
        "pause_seconds": decision.pause_seconds,
    }


FINDINGS: Mapping[str, str] = {
    "missing-login": "a login has no entry in the ledger",
    "missing-outcome": "a login has ended, and the ledger has no outcome for it",
    "unwitnessed-login": "the ledger has a login that no other program of the host saw",
}
"""What coverage may find, and how it is called."""


@dataclass(frozen=True)
class Finding:
    """A difference between the ledger and what other programs of the host saw of a login."""

    key: str
    """Hex SHA-256: the same for the same login, so that it is entered once."""
    what: str
    """one of FINDINGS"""
    user: str
    seen: str
    """When the login began, as format_time() writes it."""
    witnesses: Tuple[str, ...] = ()
    service: Optional[str] = None
    source: Optional[str] = None
    tty: Optional[str] = None
    pid: Optional[int] = None
    login: Optional[str] = None
    disabled: bool = False
    """By the ledger's own word, logins did not go through recuse then."""

    @classmethod
    def from_json(cls, told: object) -> Finding:
        """Read what vars() of one gives, sent by another process.

        Raises: LedgerError
        """
        names = {one.name for one in dataclasses.fields(cls)}
        if not isinstance(told, dict) or told.keys() - names:
            raise LedgerError("not a finding: not an object of its fields")
        try:
            found = cls(**{**told, "witnesses": tuple(told.get("witnesses", ()))})
            parse_time(found.seen)
        except (TypeError, ValueError, LedgerError):
            raise LedgerError("not a finding: fields are missing or are no times") from None
        texts = (found.user, found.service, found.source, found.tty, found.login)
        if found.user is None or not all(
            one is None or (isinstance(one, str) and len(one) <= 256) for one in texts
        ):
            raise LedgerError("not a finding: a field is no text, or too long")
        pid = found.pid
        if pid is not None and (isinstance(pid, bool) or not isinstance(pid, int) or pid < 0):
            raise LedgerError("not a finding: its pid is no number")
        if str(found.what) not in FINDINGS or not re.fullmatch("[0-9a-f]{64}", str(found.key)):
            raise LedgerError("not a finding: nothing that coverage finds")
        known = ("sshd", "pam", "logind", "wtmp")
        if not isinstance(found.disabled, bool) or any(w not in known for w in found.witnesses):
            raise LedgerError("not a finding: no such witness")
        return found


# Small conversions


def text(raw: bytes) -> str:
    """Decode what users or programs sent; bytes that are not UTF-8 become \\xNN."""
    return raw.decode("utf-8", "backslashreplace")


ID_BYTES = 16
_LETTERS = bytes(b"abcdefghijklmnopqrstuvwxyz234567"[byte % 32] for byte in range(256))


def new_id(prefix: str, random: bytes) -> str:
    """Name a session ("s"), login ("l") or grant ("g") by ID_BYTES random bytes, 5 bits of each."""
    if len(random) != ID_BYTES:
        raise ValueError(f"an id needs {ID_BYTES} random bytes")
    return f"{prefix}-{random.translate(_LETTERS).decode('ascii')}"


def format_time(time_ns: int) -> str:
    """Write UTC nanoseconds as RFC 3339 with nine digits."""
    seconds, nanos = divmod(time_ns, 1_000_000_000)
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return f"{moment.replace(tzinfo=None).isoformat()}.{nanos:09d}Z"


_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z", re.ASCII)


def parse_time(written: str) -> int:
    """Read format_time()'s form into UTC nanoseconds.

    Raises: LedgerError
    """
    match = _TIME.fullmatch(written)
    if match:
        try:
            moment = datetime.fromisoformat(match[1])
        except ValueError:
            match = None
    if not match:
        raise LedgerError(f"{written[:40]!r} is not a time")
    seconds = round(moment.replace(tzinfo=timezone.utc).timestamp())
    return seconds * 1_000_000_000 + int((match[2] or "").ljust(9, "0"))


def split_endpoint(written: str) -> Tuple[str, Optional[int]]:
    """Split "192.0.2.7:40112" or "[2001:db8::1]:99" into address and port."""
    host, colon, port = written.rpartition(":")
    is_port = port.isascii() and port.isdigit() and len(port) <= 5  # as no other digits are
    if not colon or not is_port or (":" in host and not host.startswith("[")):
        return written, None
    return host.strip("[]"), int(port)


def _plain(value: Any) -> Any:
    """Turn dataclasses, sets and tuples into what JSON has; sets in sorted order."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: _plain(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(one) for one in value)
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, str):
        # A surrogate would come out as an escape that is no character to other JSON readers.
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    return value


def _present(fields: Mapping[str, Any]) -> Json:
    return {key: value for key, value in fields.items() if value is not None}


# Cutting to size

_ROUNDS = ((8192, 1000), (4096, 500), (1024, 120), (256, 60), (128, 24))
LEAST_ITEMS = _ROUNDS[-1][1]
"""No list is cut to fewer."""


def _clamp(value: Any, max_bytes: int, max_items: int) -> Any:
    if isinstance(value, dict):
        return {key: _clamp(one, max_bytes, max_items) for key, one in value.items()}
    if isinstance(value, list):
        return [_clamp(one, max_bytes, max_items) for one in value[:max_items]]
    if isinstance(value, str) and len(value.encode()) > max_bytes:
        return value.encode()[:max_bytes].decode("utf-8", "ignore") + "\u2026"
    return value


_compact = json.JSONEncoder(
    ensure_ascii=False, check_circular=False, separators=(",", ":"), allow_nan=False
)


def _dump(event: Json) -> bytes:
    return _compact.encode(event).encode()


def _encode(event: Json) -> bytes:
    try:
        entry = _dump(event)
    except (TypeError, UnicodeEncodeError):  # what JSON has no word for, or UTF-8 no bytes
        entry = _dump(cast(Json, _plain(event)))
    if len(entry) <= MAX_ENTRY_BYTES:
        return entry
    event = cast(Json, _plain(event))
    for max_bytes, max_items in _ROUNDS:
        if len(entry) <= MAX_ENTRY_BYTES:
            return entry
        smaller = cast(Json, _clamp(event, max_bytes, max_items))
        ours = smaller["unmapped"]["recuse"]
        ours["cut"] = True
        if _command(smaller) != _command(event):
            ours["command_cut"] = True
        entry = _dump(smaller)
    if len(entry) > MAX_ENTRY_BYTES:
        raise LedgerError(f"a {event['metadata']['event_code']} entry has {len(entry)} bytes")
    return entry


# Builders


def _event(
    host: Host,
    index: int,
    time_ns: int,
    kind: str,
    class_uid: int,
    activity: int,
    severity: int,
    ours: Mapping[str, Any],
    fields: Optional[Mapping[str, Any]] = None,
    *,
    correlation: Optional[str] = None,
    profiles: Sequence[str] = ("host",),
    status: int = _SUCCESS,
) -> bytes:
    event: Json = {
        "activity_id": activity,
        "category_uid": class_uid // 1000,
        "class_uid": class_uid,
        "type_uid": class_uid * 100 + activity,
        "severity_id": severity,
        "status_id": status,
        "time": time_ns // 1_000_000,
        "metadata": _present(
            {
                "version": OCSF_VERSION,
                "uid": f"{host.origin}:{index}",
                "sequence": index,
                "event_code": kind,
                "correlation_uid": correlation,
                "log_name": "recuse",
                "log_provider": "recuse-agent",
                "logged_time": time_ns // 1_000_000,
                "original_time": format_time(time_ns),
                "profiles": list(profiles),
                "product": {
                    "name": "recuse",
                    "vendor_name": "recuse",
                    "version": host.version,
                },
            }
        ),
        "device": {
            "hostname": host.hostname,
            "uid": host.machine_id,
            "type_id": 1,
            "os": {"name": host.os_name, "type_id": 200},
        },
    }
    if class_uid == EVENT_LOG:
        event.update(
            log_name="recuse",
            log_provider="recuse-agent",
            log_type_id=99,
            log_type="session recording",
        )
        if activity == _OTHER:
            event["activity_name"] = kind
    event.update(_present(fields or {}))
    event["unmapped"] = {"recuse": {"kind": kind, "boot_id": host.boot_id, **_present(ours)}}
    return _encode(event)


def _login_ours(login: Login) -> Json:
    return {
        "login": login.id,
        "user": login.user,
        "uid": login.uid,
        "auid": login.auid,
        "audit_session": login.audit_session,
        "service": login.service,
        "source": login.source.kernel,
        "source_claimed": login.source.claimed,
        "ruser": login.ruser,
        "outer": login.outer,
    }


def _login_more(login: Login) -> Json:
    return {"tty": login.tty, "started": format_time(login.started_ns)}


def _session_ours(session: Session) -> Json:
    return {
        **_login_ours(session.login),
        "session": session.id,
        "session_kind": session.kind,
        "tty": session.tty,
        "started": format_time(session.started_ns),
        "command_cut": session.command_cut or None,
        "command_sha256": session.command_sha256,
        "notice_sha256": session.notice_sha256,
        "notice_language": session.notice_language,
        "agreed": session.agreed,
        "late": session.late or None,
    }


def _session_more(session: Session) -> Json:
    mono_s, mono_ns = divmod(session.mono_ns, 1_000_000_000)
    return {
        "monotonic": f"{mono_s}.{mono_ns:09d}",
        "login_tty": session.login.tty,
        "term": session.term or None,
        "lang": session.lang or None,
        "rows": session.rows or None,
        "cols": session.cols or None,
        "claimed_tags": list(session.claimed_tags) or None,
        "notes": list(session.notes) or None,
    }


def _user(login: Login) -> Json:
    return {"name": login.user, "uid": str(login.uid)}


def _endpoint(source: Source) -> Optional[Json]:
    if source.kernel is None:
        return None
    address, port = split_endpoint(source.kernel)
    return _present({"ip": address, "port": port})


def _is_remote(login: Login) -> bool:
    return login.source.kernel is not None or bool(login.source.claimed)


def _session_object(login: Login, uid: str, tty: Optional[str], started_ns: int) -> Json:
    return _present(
        {
            "uid": uid,
            "uid_alt": None if login.audit_session is None else str(login.audit_session),
            "terminal": tty,
            "created_time": started_ns // 1_000_000,
            "issuer": login.service,
            "is_remote": _is_remote(login),
        }
    )


def _login_fields(login: Login) -> Json:
    return {
        "user": _user(login),
        "service": {"name": login.service},
        "session": _session_object(login, login.id, login.tty, login.started_ns),
        "src_endpoint": _endpoint(login.source),
        "is_remote": _is_remote(login),
        "actor": _present(
            {
                "process": {"pid": login.pid},
                "user": {"name": login.ruser} if login.ruser else None,
            }
        ),
    }


def _login_activity(login: Login) -> Tuple[int, Json]:
    if login.service in _SWITCHES:
        return _ACCOUNT_SWITCH, {"account_switch_type_id": 1}
    return _LOGON, {}


def _session_fields(session: Session) -> Json:
    program = session.shell or "unknown"
    process: Json = {
        "pid": session.pid,
        "cmd_line": session.command,
        "file": {"name": program.rsplit("/", 1)[-1] or program, "path": program, "type_id": 1},
    }
    return {
        "actor": {
            "user": _user(session.login),
            "session": _session_object(session.login, session.id, session.tty, session.started_ns),
            "process": _present(process),
        },
        "src_endpoint": _endpoint(session.login.source),
        "start_time": session.started_ns // 1_000_000,
    }


def _decision_ours(decision: Decision) -> Json:
    told = facts_to_json(decision.facts)
    if told["command"] is not None and not decision.keeps_command:
        told.update(command="", command_cut=True)  # there was one, as if nothing of it were known
    if decision.answers:
        told["answers"] = {name: answer_to_json(one) for name, one in decision.answers.items()}
    return {
        "verdict": decision.verdict,
        **_grounds(decision),
        "confirm": decision.confirm or None,
        "matched": list(decision.matched),
        "tags": list(decision.tags) or None,
        "facts": told,
    }


def _control_fields(
    rule: Optional[str], policy: Optional[str], allowed: bool, detail: Sequence[Optional[str]]
) -> Json:
    number = 1 if allowed else 2
    return {
        "action_id": number,
        "disposition_id": number,
        "policy": _present({"name": rule or "default", "version": policy}),
        "status_detail": "; ".join(one for one in detail if one) or None,
    }


def _decision_fields(decision: Decision, allowed: bool = True) -> Json:
    return _control_fields(
        decision.rule,
        decision.policy,
        allowed,
        (
            decision.reason,
            decision.owner and f"owner {decision.owner}",
            decision.expires and f"until {decision.expires}",
        ),
    )


_CONTROLLED = ("host", "security_control")


def start_entry(
    host: Host,
    index: int,
    time_ns: int,
    previous: Optional[Mapping[str, Any]],
    reason: str,
    *,
    heartbeat_seconds: int = DEFAULT_HEARTBEAT_SECONDS,
) -> bytes:
    """Say that the agent starts, and promise an entry at least every heartbeat_seconds.

    `previous` is {"origin", "size", "root"} of the ledger this one replaces, if it is a new epoch.
    """
    ours = {
        "reason": reason,
        "previous": previous,
        "heartbeat_seconds": heartbeat_seconds,
    }
    return _event(
        host, index, time_ns, "start", EVENT_LOG, _OTHER, _INFORMATIONAL, ours,
        {"status_detail": reason},
    )  # fmt: skip


def stop_entry(host: Host, index: int, time_ns: int, reason: str = "") -> bytes:
    """Say that the agent stops in an orderly way."""
    return _event(
        host, index, time_ns, "stop", EVENT_LOG, _OTHER, _INFORMATIONAL, {"reason": reason or None}
    )


def heartbeat_entry(host: Host, index: int, time_ns: int, live: int) -> bytes:
    """Say that the agent lives, and how many sessions do."""
    return _event(
        host, index, time_ns, "heartbeat", EVENT_LOG, _OTHER, _INFORMATIONAL, {"live": live}
    )


def policy_entry(
    host: Host, index: int, time_ns: int, digest: str, files: Mapping[str, str], rules: int
) -> bytes:
    """Say which policy is in force from now on; `files` maps names to SHA-256 in hex."""
    return _event(
        host, index, time_ns, "policy", EVENT_LOG, _OTHER, _INFORMATIONAL,
        {"policy": digest, "files": dict(files), "rules": rules},
    )  # fmt: skip


def login_entry(host: Host, index: int, time_ns: int, login: Login, decision: Decision) -> bytes:
    """Say that somebody logged in."""
    activity, more = _login_activity(login)
    return _event(
        host, index, time_ns, "login", AUTHENTICATION, activity, _INFORMATIONAL,
        {
            **_login_ours(login),
            **_login_more(login),
            **_decision_ours(decision),
        },
        {**_login_fields(login), **more, **_decision_fields(decision)},
        correlation=login.id, profiles=_CONTROLLED,
    )  # fmt: skip


def logout_entry(
    host: Host,
    index: int,
    time_ns: int,
    login: Login,
    outcome: Optional[str],
    sessions: int,
    gap: Optional[str] = None,
) -> bytes:
    """Say that a login ended; `outcome` is its own, None where its sessions carry theirs.

    `gap` is the cause of what was not recorded if the outcome is partial.
    """
    _check_outcome(outcome)
    return _event(
        host, index, time_ns, "logout", AUTHENTICATION, _LOGOFF, _INFORMATIONAL,
        {
            **_login_ours(login),
            **_login_more(login),
            "ended": format_time(time_ns),
            "outcome": outcome,
            "sessions": sessions,
            "gap": gap,
        },
        {
            **_login_fields(login),
            "start_time": login.started_ns // 1_000_000,
            "end_time": time_ns // 1_000_000,
        },
        correlation=login.id, status=_status_of(outcome),
    )  # fmt: skip


def open_entry(
    host: Host,
    index: int,
    time_ns: int,
    session: Session,
    decision: Decision,
    *,
    grant_use: Optional[Mapping[str, Any]] = None,
) -> bytes:
    """Say that a session starts that is recorded; `grant_use` as in exempt_entry()."""
    kind = ("open", _START, _INFORMATIONAL)
    return _begin(host, index, time_ns, kind, session, decision, grant_use)


def exempt_entry(
    host: Host,
    index: int,
    time_ns: int,
    session: Session,
    decision: Decision,
    *,
    grant_use: Optional[Mapping[str, Any]] = None,
) -> bytes:
    """Say that a session starts that is not recorded, by which rule or grant, and why.

    `grant_use` says which use of the grant this is, and which entries it rests on.
    """
    kind = ("exempt", _DISABLE, _MEDIUM)
    return _begin(host, index, time_ns, kind, session, decision, grant_use)


def _begin(
    host: Host,
    index: int,
    time_ns: int,
    kind: Tuple[str, int, int],
    session: Session,
    decision: Decision,
    grant_use: Optional[Mapping[str, Any]],
) -> bytes:
    name, activity, severity = kind
    return _event(
        host, index, time_ns, name, EVENT_LOG, activity, severity,
        {
            **_session_ours(session), **_session_more(session), **_decision_ours(decision),
            "grant_use": grant_use,
        },
        {**_session_fields(session), **_decision_fields(decision)},
        correlation=session.id, profiles=_CONTROLLED,
    )  # fmt: skip


def refused_entry(
    host: Host,
    index: int,
    time_ns: int,
    refused: Union[Login, Session],
    decision: Decision,
) -> bytes:
    """Say that a login or a session was refused; nothing follows on it."""
    fields: Json
    if isinstance(refused, Session):
        login = refused.login
        ours = {**_session_ours(refused), **_session_more(refused)}
        fields = {**_login_fields(login), **_session_fields(refused)}
        fields["session"] = fields["actor"]["session"]
    else:
        login = refused
        ours = {**_login_ours(login), **_login_more(login)}
        fields = _login_fields(login)
    activity, more = _login_activity(login)
    return _event(
        host, index, time_ns, "refused", AUTHENTICATION, activity, _LOW,
        {
            **ours,
            **_decision_ours(decision),
            "message": decision.message,
            "outcome": "refused",
            "ended": format_time(time_ns),
        },
        {**fields, **more, **_decision_fields(decision, allowed=False)},
        correlation=refused.id, profiles=_CONTROLLED, status=_FAILURE,
    )  # fmt: skip


def segment_entry(host: Host, index: int, time_ns: int, segment: Segment) -> bytes:
    """Name the next piece of a recording by the SHA-256 of its blob."""
    ours = dataclasses.asdict(segment)
    ours["gaps"] = _gaps(segment.gaps)
    return _event(
        host, index, time_ns, "segment", EVENT_LOG, _OTHER, _INFORMATIONAL, ours,
        {
            "file": {
                "name": f"{segment.session}.{segment.n}.cast.gz",
                "type_id": 1,
                "size": segment.size,
                "hashes": [{"algorithm_id": 3, "value": segment.blob}],
            }
        },
        correlation=segment.session,
    )  # fmt: skip


def close_entry(
    host: Host,
    index: int,
    time_ns: int,
    session: Session,
    verdict: str,
    outcome: str,
    ended_ns: int,
    exit_status: Optional[int],
    size: int,
    segments: int,
    digest: Optional[str],
    gaps: Sequence[Gap] = (),
    flags: Sequence[str] = (),
    decision: Optional[Union[Decision, Grounds]] = None,
) -> bytes:
    """Say how a session ended; readable without the entry that opened it.

    `size`, `segments` and `digest` (hex SHA-256) are of all plaintext of the recording, in order;
    0, 0 and None where there is none. `decision` repeats who decided and why.
    """
    _check_outcome(outcome)
    if decision is None:
        grounds = Grounds()
    elif isinstance(decision, Grounds):
        grounds = decision
    else:
        grounds = Grounds.of(decision)
    exempt = verdict == "exempt"
    ours = {
        **_session_ours(session),
        "verdict": verdict,
        **vars(grounds),
        "outcome": outcome,
        "ended": format_time(ended_ns),
        "exit_status": exit_status,
        "size": size,
        "segments": segments,
        "digest": digest,
        "gaps": _gaps(gaps),
        "flags": list(flags) or None,
    }
    file: Optional[Json] = None
    if digest is not None:
        file = {
            "name": f"{session.id}.cast",
            "type_id": 1,
            "size": size,
            "hashes": [{"algorithm_id": 3, "value": digest}],
        }
    detail = (grounds.reason, grounds.owner and f"owner {grounds.owner}", ", ".join(flags))
    return _event(
        host, index, time_ns, "close", EVENT_LOG, _OTHER if exempt else _STOP, _INFORMATIONAL,
        ours,
        {
            **_session_fields(session),
            **_control_fields(grounds.rule, grounds.policy, True, detail),
            "end_time": ended_ns // 1_000_000,
            "status_code": None if exit_status is None else str(exit_status),
            "file": file,
        },
        correlation=session.id, profiles=_CONTROLLED, status=_status_of(outcome),
    )  # fmt: skip


def recovered_entry(
    host: Host, index: int, time_ns: int, what: str, detail: Mapping[str, Any]
) -> bytes:
    """Say what was put right after a crash."""
    return _event(
        host, index, time_ns, "recovered", EVENT_LOG, _OTHER, _LOW,
        {"what": what, "detail": dict(detail)}, {"status_detail": what},
    )  # fmt: skip


def finding_entry(host: Host, index: int, time_ns: int, finding: Finding) -> bytes:
    """Say that the ledger and other traces of a login do not agree."""
    ours = {"finding": finding.key, **vars(finding)}
    del ours["key"]
    ours["witnesses"] = list(finding.witnesses) or None
    ours["disabled"] = finding.disabled or None
    title = FINDINGS[finding.what]
    about = f"{finding.user} by {finding.service or 'an unknown service'} at {finding.seen}"
    high = finding.what != "unwitnessed-login" and not finding.disabled
    return _event(
        host, index, time_ns, "finding", DETECTION_FINDING, _CREATE, _HIGH if high else _MEDIUM,
        ours,
        {
            "finding_info": {
                "uid": finding.key,
                "title": title,
                "desc": f"{title}: {about}",
                "created_time": time_ns // 1_000_000,
                "first_seen_time": parse_time(finding.seen) // 1_000_000,
            },
            "is_alert": True,
        },
        correlation=finding.login,
    )  # fmt: skip


def undelivered_entry(
    host: Host,
    index: int,
    time_ns: int,
    channel: str,
    count: int,
    first: str,
    last: str,
    cause: str,
) -> bytes:
    """Say that notices to admins were given up, between which entries; these are all there."""
    return _event(
        host, index, time_ns, "undelivered", EVENT_LOG, _OTHER, _MEDIUM,
        {"channel": channel, "count": count, "first": first, "last": last, "cause": cause},
        {"status_detail": f"{amounts.number(count, 'notice')} of channel {channel}: {cause}"},
        status=_FAILURE,
    )  # fmt: skip


def session_event(
    host: Host,
    index: int,
    time_ns: int,
    kind: str,
    activity: int,
    severity: int,
    session: Session,
    grounds: Grounds,
    ours: Mapping[str, Any],
    detail: Sequence[Optional[str]],
) -> bytes:
    """Say what happens to the recording of a session that goes on."""
    return _event(
        host, index, time_ns, kind, EVENT_LOG, activity, severity, ours,
        {
            **_session_fields(session),
            **_control_fields(grounds.rule, grounds.policy, True, detail),
        },
        correlation=session.id, profiles=_CONTROLLED,
    )  # fmt: skip


def _gaps(gaps: Sequence[Gap]) -> Optional[List[Json]]:
    return [_present(dataclasses.asdict(gap)) for gap in gaps] or None


def _check_outcome(outcome: Optional[str]) -> None:
    if outcome is not None and outcome not in OUTCOMES:
        raise ValueError(f"{outcome!r} is no outcome")


def _status_of(outcome: Optional[str]) -> int:
    if outcome in ("failed", "lost", "refused"):
        return _FAILURE
    return _OTHER_STATUS if outcome == "partial" else _SUCCESS


# Reading


def carried_entry(host: Host, index: int, time_ns: int, entry: bytes) -> bytes:
    """Say again what an entry of another ledger of this host says, and where it stood.

    When something happened is in `started` and `ended`; the entry's own time is that of now.

    Raises: LedgerError if it is no entry
    """
    data = parse(entry).data
    metadata = data["metadata"]
    was = {"uid": metadata["uid"], "time": metadata["original_time"]}
    metadata.update(
        uid=f"{host.origin}:{index}",
        sequence=index,
        logged_time=time_ns // 1_000_000,
        original_time=format_time(time_ns),
    )
    data["time"] = time_ns // 1_000_000
    data["unmapped"]["recuse"]["carried"] = was
    return _encode(data)


@dataclass(frozen=True)
class Entry:
    """One entry taken apart; `data` is the whole event."""

    index: int
    kind: str
    time_ns: int
    data: Json
    origin: str

    @property
    def ours(self) -> Json:
        """Give what OCSF has no place for: unmapped.recuse."""
        return cast(Json, self.data["unmapped"]["recuse"])

    def get(self, key: str) -> Optional[str]:
        """Read a string out of unmapped.recuse; None if it is missing or something else."""
        value = self.ours.get(key)
        return value if isinstance(value, str) else None

    def number(self, key: str) -> Optional[int]:
        """Read an integer of 64 bits out of unmapped.recuse; None if missing or something else."""
        value = self.ours.get(key)
        return value if _is_int64(value) else None

    def object(self, key: str) -> Json:
        """Read an object out of unmapped.recuse; {} if it is missing or something else."""
        value = self.ours.get(key)
        return value if isinstance(value, dict) else {}

    def answers(self) -> Json:
        """Give what rules that ask were answered, by name, each as answer_to_json() has it."""
        answers = self.object("facts").get("answers")
        return answers if isinstance(answers, dict) else {}


def _is_int64(value: object) -> bool:
    """Say whether it is a number that other readers of JSON, and arithmetic here, can take."""
    return type(value) is int and -(1 << 63) <= value < 1 << 63


def parse(entry: bytes) -> Entry:
    """Take an entry apart; kinds that are not known pass.

    Raises: LedgerError if it is not one OCSF event of ours that knows its own number.
    """
    if len(entry) > MAX_ENTRY_BYTES:
        raise LedgerError(f"an entry of {len(entry)} bytes is too long")
    try:
        data = strictjson.load_text(entry)
        metadata, ours = data["metadata"], data["unmapped"]["recuse"]
        uid, index, kind = metadata["uid"], metadata["sequence"], ours["kind"]
        numbers = (index, data["class_uid"], data["activity_id"], data["type_uid"], data["time"])
        class_uid, activity, type_uid = numbers[1:4]
        if not isinstance(ours, dict) or not isinstance(kind, str):
            raise TypeError
        if metadata["event_code"] != kind or not all(map(_is_int64, numbers)):
            raise TypeError
        origin, _, number = uid.rpartition(":")
        time_ns = parse_time(metadata["original_time"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise LedgerError("not an entry: not an OCSF event with our fields") from None
    if index < 0 or number != str(index):
        raise LedgerError(f"entry {index} says it is {uid!r:.80}")
    if type_uid != class_uid * 100 + activity:
        raise LedgerError(f"entry {index}: type_uid is not class_uid and activity_id")
    return Entry(index, kind, time_ns, data, origin)


def _command(data: Json) -> Optional[str]:
    value: Any = data
    for key in ("actor", "process", "cmd_line"):
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, str) else None


def _nested(data: Json, *keys: str) -> Optional[str]:
    value: Any = data
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, str) else None


@dataclass
class SegmentRow:
    """A segment as its entry states it, with the number of that entry."""

    seq: int
    n: int
    blob: str
    size: int
    plain_size: int
    t0: float
    t1: float
    events: int

    def to_json(self) -> Json:
        """Give plain values."""
        return dataclasses.asdict(self)


@dataclass
class Row:
    """What the entries so far say about one login or session."""

    seq: int
    user: Optional[str] = None
    uid: Optional[int] = None
    auid: Optional[int] = None
    service: Optional[str] = None
    source: Optional[str] = None
    source_claimed: Optional[str] = None
    host: Optional[str] = None
    origin: Optional[str] = None
    tty: Optional[str] = None
    outer: Optional[str] = None
    started: Optional[str] = None
    ended: Optional[str] = None
    verdict: Optional[str] = None
    outcome: Optional[str] = None
    rule: Optional[str] = None
    reason: Optional[str] = None
    owner: Optional[str] = None
    expires: Optional[str] = None
    policy: Optional[str] = None
    grant: Optional[str] = None
    level: Optional[str] = None
    reason_code: Optional[str] = None
    closed_seq: Optional[int] = None
    boot_id: Optional[str] = None

    def to_json(self) -> Json:
        """Give plain values under the names that the command line documents."""
        return dataclasses.asdict(self)


@dataclass
class SessionRow(Row):
    """A session; its outcome is None while it lives."""

    session: str = ""
    login: Optional[str] = None
    command: Optional[str] = None
    command_cut: bool = False
    command_sha256: Optional[str] = None
    shell: Optional[str] = None
    exit_status: Optional[int] = None
    bytes: int = 0
    digest: Optional[str] = None
    kind: str = "none"
    late: bool = False
    supervised: bool = False
    tags: List[str] = field(default_factory=list)
    claimed_tags: List[str] = field(default_factory=list)
    answers: Json = field(default_factory=dict)
    paused_seq: Optional[int] = None
    """Number of the entry of the pause that it is in."""
    segments: List[SegmentRow] = field(default_factory=list)
    gaps: List[Json] = field(default_factory=list)
    flags: List[str] = field(default_factory=list)
    notes: List[str] = field(default_factory=list)
    notice_sha256: Optional[str] = None
    notice_language: Optional[str] = None
    agreed: Optional[str] = None

    @property
    def live(self) -> bool:
        """Say whether nothing was entered yet about its end."""
        return self.outcome is None

    @property
    def is_withheld(self) -> bool:
        """Say whether it began as one that is not recorded.

        What a rule exempts is recorded all the same where a recording is around it.
        """
        return self.verdict == "exempt" and self.kind != "nested"

    @property
    def is_relayed(self) -> bool:
        """Say whether a relay is in it, and counts, though it is withheld."""
        return self.supervised or self.level == "commands"

    @property
    def is_exempt(self) -> bool:
        """Say whether it is exempt, or was to its end."""
        return self.is_withheld if self.live else self.outcome == "exempt"

    def to_json(self) -> Json:
        more = {"exempt": self.is_exempt}
        return {"session": self.session, "login": self.login, **super().to_json(), **more}


@dataclass
class LoginRow(Row):
    """A login; its outcome is None where its sessions carry theirs."""

    login: str = ""
    ruser: Optional[str] = None
    gap: Optional[str] = None
    sessions: List[str] = field(default_factory=list)

    def to_json(self) -> Json:
        return {"login": self.login, **super().to_json()}


AnyRow = Union[SessionRow, LoginRow]

_SHARED_TEXT = (
    "user",
    "service",
    "source",
    "source_claimed",
    "outer",
    "tty",
    "started",
    "ended",
    "verdict",
    "rule",
    "reason",
    "owner",
    "expires",
    "policy",
    "grant",
    "level",
    "reason_code",
)
_SESSION_KINDS: FrozenSet[str] = frozenset({"open", "exempt", "refused", "close"})


def _update(row: Row, entry: Entry) -> None:
    """Take over what the entry states; what it leaves out stays as it was."""
    for key in _SHARED_TEXT:
        value = entry.get(key)
        if value is not None:
            setattr(row, key, value)
    for key in ("uid", "auid"):
        number = entry.number(key)
        if number is not None:
            setattr(row, key, number)
    row.host = _nested(entry.data, "device", "hostname") or row.host
    row.origin = entry.origin
    outcome = entry.get("outcome")
    if outcome in OUTCOMES:
        row.outcome = outcome


def _strings(value: Any) -> List[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _objects(value: Any) -> List[Json]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _float(value: Any) -> float:
    good = _is_int64(value) or (isinstance(value, float) and math.isfinite(value))
    return float(value) if good else 0.0


class View:
    """Logins and sessions as the entries applied so far tell them."""

    def __init__(self) -> None:
        self.sessions: Dict[str, SessionRow] = {}
        self.logins: Dict[str, LoginRow] = {}
        self.starts: List[Tuple[int, Optional[str]]] = []
        """Numbers of the start entries, each with the boot it speaks of."""
        self.findings: Dict[str, Entry] = {}
        """What coverage found, by key."""
        self.size = 0

    def apply(self, entry: Entry) -> None:
        """Take in the next entry; one that makes no sense changes nothing."""
        self.size = max(self.size, entry.index + 1)
        if entry.kind == "start":
            self.starts.append((entry.index, entry.get("boot_id")))
        elif entry.kind == "segment":
            self._segment(entry)
        elif entry.kind in ("pause", "resume"):
            row = self.sessions.get(entry.get("session") or "")
            if row is not None:
                row.paused_seq = entry.index if entry.kind == "pause" else None
        elif entry.kind == "finding":
            self.findings.setdefault(entry.get("finding") or "", entry)
        elif entry.kind in _SESSION_KINDS and entry.get("session") is not None:
            self._session(entry)
        elif entry.kind in ("login", "logout", "refused"):
            self._login(entry)

    def _login(self, entry: Entry) -> None:
        name = entry.get("login")
        if name is None:
            return
        row = self.logins.get(name)
        if row is None:
            row = LoginRow(entry.index, login=name, boot_id=entry.get("boot_id"))
            self.logins[name] = row
        elif entry.kind == "login" and row.origin != entry.origin:
            row.closed_seq = row.outcome = row.ended = row.gap = None  # it lives, in a new epoch
        _update(row, entry)
        row.ruser = entry.get("ruser") or row.ruser
        row.gap = entry.get("gap") or row.gap
        if entry.kind != "login":
            row.closed_seq = entry.index

    def _session(self, entry: Entry) -> None:
        name = entry.get("session")
        if name is None:
            return
        row = self.sessions.get(name)
        if row is None:
            row = SessionRow(
                entry.index, session=name, login=entry.get("login"), boot_id=entry.get("boot_id")
            )
            self.sessions[name] = row
            login = self.logins.get(row.login or "")
            if login is not None:
                login.sessions.append(name)
        elif entry.kind in ("open", "exempt") and row.origin != entry.origin:
            # A new epoch has the whole of it once more.
            row.closed_seq = row.outcome = row.ended = None
            row.segments, row.bytes = [], 0
        _update(row, entry)
        ours = entry.ours
        row.kind = entry.get("session_kind") or row.kind
        row.command = _command(entry.data) or row.command
        row.command_cut = row.command_cut or ours.get("command_cut") is True
        row.shell = _nested(entry.data, "actor", "process", "file", "path") or row.shell
        row.late = row.late or ours.get("late") is True
        row.command_sha256 = entry.get("command_sha256") or row.command_sha256
        row.supervised = row.supervised or ours.get("supervised") is True
        row.tags = _strings(ours.get("tags")) or row.tags
        row.claimed_tags = _strings(ours.get("claimed_tags")) or row.claimed_tags
        row.answers = entry.answers() or row.answers
        row.notes = _strings(ours.get("notes")) or row.notes
        row.notice_sha256 = entry.get("notice_sha256") or row.notice_sha256
        row.notice_language = entry.get("notice_language") or row.notice_language
        row.agreed = entry.get("agreed") or row.agreed
        if entry.kind in ("close", "refused"):
            row.closed_seq = entry.index
        if entry.kind == "close":
            row.exit_status = entry.number("exit_status")
            row.bytes = entry.number("size") or 0
            row.digest = entry.get("digest")
            row.flags = _strings(ours.get("flags"))
            row.gaps = _objects(ours.get("gaps"))

    def _segment(self, entry: Entry) -> None:
        row = self.sessions.get(entry.get("session") or "")
        n, blob = entry.number("n"), entry.get("blob")
        if row is None or n is None or blob is None:
            return
        plain_size = entry.number("plain_size") or 0
        row.segments.append(
            SegmentRow(
                seq=entry.index,
                n=n,
                blob=blob,
                size=entry.number("size") or 0,
                plain_size=plain_size,
                t0=_float(entry.ours.get("t0")),
                t1=_float(entry.ours.get("t1")),
                events=entry.number("events") or 0,
            )
        )
        if row.closed_seq is None:
            row.bytes += plain_size

    def rows(self) -> List[SessionRow]:
        """List sessions, and logins that had none, in the order of their first entries.

        A login without a session that carries an outcome of its own appears as a session of kind
        "none" under the login's id.
        """
        rows = list(self.sessions.values())
        for login in self.logins.values():
            if login.sessions or login.outcome is None:
                continue
            shared = {one.name: getattr(login, one.name) for one in dataclasses.fields(Row)}
            gaps = [{"cause": login.gap}] if login.gap else []
            rows.append(SessionRow(**shared, session=login.login, login=login.login, gaps=gaps))
        return sorted(rows, key=lambda row: row.seq)

    def abandoned(self) -> List[AnyRow]:
        """List what never ended although the host has booted again since: lost, most likely."""
        last: Dict[Optional[str], int] = {}
        for index, boot in self.starts:
            last[boot] = max(index, last.get(boot, index))
        newest = sorted(last.items(), key=lambda one: -one[1])[:2]  # of two boots one is another
        rows: List[AnyRow] = [*self.sessions.values(), *self.logins.values()]
        found = [
            row
            for row in rows
            if row.closed_seq is None
            and any(index > row.seq and boot != row.boot_id for boot, index in newest)
        ]
        return sorted(found, key=lambda row: row.seq)


def fold(entries: Iterable[Entry]) -> View:
    """Add entries up to logins and sessions."""
    view = View()
    for entry in entries:
        view.apply(entry)
    return view
