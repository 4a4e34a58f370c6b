"""What admins are told: notices made of ledger entries, which go where, and how they look.

Pure. A notice has an id that is the same however often it is sent, so that receivers can tell a
repetition. What is held back, because it repeats or because there is too much of it, is counted in
groups; these are part of a channel's state, so that nothing of it is lost by a crash.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import hmac
import json
import re
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from typing import Any, Dict, FrozenSet, List, Mapping, Optional, Sequence, Tuple

from . import amounts, grantrecords, pauserecords
from .checkpoint import leaf_hash
from .records import KINDS, Entry, Json, format_time, parse
from .unprintable import escaped

SEVERITIES = ("informational", "low", "medium", "high", "critical", "fatal")
"""Of OCSF, from 1."""
HIGH = 4
KNOWN_KINDS = tuple(dict.fromkeys((*KINDS, *grantrecords.KINDS, *pauserecords.KINDS)))
"""What a route may name without a glob."""
MINUTE_NS = 60 * 10**9
MAX_GROUPS = 1000
"""What may be held back in one channel at a time; what is beyond is counted in one group."""
MAX_SOURCES = 8
MAX_LINE = 300  # characters of a value in a text; users choose some of them
CLOUDEVENTS_TYPE = "application/cloudevents+json"

_DATA_SCHEMAS = {
    3002: "https://schema.ocsf.io/1.8.0/classes/authentication",
    1008: "https://schema.ocsf.io/1.8.0/classes/event_log_actvity",
    2004: "https://schema.ocsf.io/1.8.0/classes/detection_finding",
}
_TITLES = {
    "start": "the agent starts: {reason}",
    "stop": "the agent stops",
    "heartbeat": "{live:session} live",
    "policy": "policy {policy} is in force, {rules:rule}",
    "login": "{user} logged in by {service} from {source}",
    "logout": "login of {user} ended",
    "open": "session of {user} is recorded",
    "exempt": "session of {user} is exempt from recording by rule {rule}: {reason}",
    "refused": "{user} was refused by rule {rule}",
    "segment": "segment {n} of session {session}",
    "close": "session of {user} ended: {outcome}",
    "recovered": "recovered: {what}",
    "request": "{requester} asks for an exemption of {user}: {reason}, {why}",
    "approval": "{principal} approves request {grant} of {user}, by {method}",
    "rejection": "{by} rejects request {grant} of {user}",
    "grant": "{user} may be exempt in {uses:session} until {expires}: {reason}, by {owner}",
    "revocation": "{by} revokes grant {grant} of {user}",
    "debt": "{user} has broken the glass: {why}; review due {due}",
    "review": "{principal} has reviewed what {user} did behind broken glass",
    "pause": "{user} pauses the recording of {session} until {until}: {pause_reason}",
    "resume": "the pause in {session} of {user} is over: {why}",
    "finding": "{title}: login of {user} by {service} from {source} at {seen}",
    "undelivered": "{count:notice} of channel {channel} given up: {cause}",
}
_SHOWN = (
    "outcome",
    "verdict",
    "rule",
    "reason",
    "owner",
    "expires",
    "grant",
    "requester",
    "principal",
    "by",
    "method",
    "ticket",
    "why",
    "words",
    "level",
    "uses",
    "due",
    "pause_reason",
    "until",
    "witnesses",
    "user",
    "service",
    "source",
    "source_claimed",
    "tty",
    "session",
    "login",
)


def one_line(value: object, limit: int = MAX_LINE) -> str:
    """Make a value fit for one line of a mail or a header, whatever a user put there."""
    text = escaped(str(value).encode("utf-8", "backslashreplace").decode())
    return text if len(text) <= limit else text[:limit] + "…"


@dataclass(frozen=True)
class Notice:
    """Something that admins are told."""

    id: str
    kind: str
    severity: int
    time_ns: int
    host: str
    machine: str
    title: str
    lines: Tuple[Tuple[str, str], ...]
    data: Json
    """The OCSF event of the entry; of a summary, its numbers."""
    origin: Optional[str] = None
    index: Optional[int] = None
    leaf: Optional[str] = None
    subject: Optional[str] = None
    count: int = 1
    rule: Optional[str] = None
    user: Optional[str] = None
    source: Optional[str] = None
    outcome: Optional[str] = None
    service: Optional[str] = None
    host_tags: Optional[FrozenSet[str]] = None

    @property
    def token(self) -> str:
        """Give the id in a form that is fit for a Message-ID or webhook-id."""
        return hashlib.sha256(self.id.encode()).hexdigest()[:32]


def _severity(entry: Entry) -> int:
    """Take the entry's own severity, but that of an outcome that should not be."""
    stated = entry.data.get("severity_id")
    severity = stated if isinstance(stated, int) and 1 <= stated <= len(SEVERITIES) else 1
    outcome = entry.get("outcome")
    if outcome in ("failed", "lost"):
        return max(severity, HIGH)
    return max(severity, 2) if outcome == "partial" else severity


def _object(value: object) -> Json:
    return value if isinstance(value, dict) else {}


def _title(entry: Entry) -> str:
    values = {key: one_line(value) for key, value in entry.ours.items() if value is not None}
    finding = _object(entry.data.get("finding_info"))
    if finding.get("title"):
        values["title"] = one_line(finding["title"])
    known = _TITLES.get(entry.kind)
    if known is not None:
        return amounts.fill(known, values)
    detail = finding.get("title") or entry.data.get("status_detail") or entry.get("reason")
    of_user = f" of {values['user']}" if "user" in values else ""
    return f"{one_line(entry.kind)}{of_user}" + (f": {one_line(detail)}" if detail else "")


def _words_of(value: object) -> str:
    return one_line(", ".join(map(str, value)) if isinstance(value, list) else value)


def _host_tags(entry: Entry) -> Optional[FrozenSet[str]]:
    tags = entry.object("facts").get("host_tags")
    return frozenset(map(str, tags)) if isinstance(tags, list) else None


def of_entry(raw: bytes) -> Notice:
    """Make the notice of one entry; kinds that are not known get one, too.

    Raises: LedgerError if that is no entry
    """
    entry = parse(raw)
    device = _object(entry.data.get("device"))
    host = one_line(device.get("hostname") or entry.origin)
    lines = [(key, _words_of(entry.ours[key])) for key in _SHOWN if entry.ours.get(key)]
    return Notice(
        id=f"{entry.origin}:{entry.index}",
        kind=entry.kind,
        severity=_severity(entry),
        time_ns=entry.time_ns,
        host=host,
        machine=one_line(device.get("uid") or host),
        title=_title(entry),
        lines=tuple(lines),
        data=entry.data,
        origin=entry.origin,
        index=entry.index,
        leaf=leaf_hash(raw).hex(),
        subject=entry.get("session") or entry.get("login") or entry.get("grant"),
        rule=entry.get("rule"),
        user=entry.get("user"),
        source=entry.get("source"),
        outcome=entry.get("outcome"),
        service=entry.get("service"),
        host_tags=_host_tags(entry),
    )


def test_notice(host: str, channel: str, now_ns: int, nonce: str) -> Notice:
    """Make a notice that says nothing but that it was sent."""
    title = f"test of channel {channel}"
    data: Json = {"channel": channel, "host": host, "sent": format_time(now_ns)}
    return Notice(f"test:{host}:{nonce}", "test", 1, now_ns, host, host, title, (), data)


def carried_from(raw: bytes) -> Optional[Tuple[str, int]]:
    """Say where an entry that was entered again stood before; None if it was not."""
    carried = parse(raw).object("carried").get("uid")
    origin, _, number = carried.rpartition(":") if isinstance(carried, str) else ("", "", "")
    return (origin, int(number)) if origin and number.isascii() and number.isdigit() else None


# -----------------------------------------------------------------------------
# Which go where


def _any(patterns: Sequence[str], values: Sequence[Optional[str]]) -> bool:
    """Match globs as policy does: one of them, and none of those with `!` in front."""
    known = [value for value in values if value is not None]
    refused = [one[1:] for one in patterns if one.startswith("!")]
    wanted = [one for one in patterns if not one.startswith("!")]
    if any(fnmatch.fnmatchcase(value, one) for value in known for one in refused):
        return False
    return not wanted or any(fnmatch.fnmatchcase(value, one) for value in known for one in wanted)


@dataclass(frozen=True)
class Route:
    """Which notices go to which channels; matchers that are empty match everything."""

    name: str
    channels: Tuple[str, ...] = ()
    kinds: Tuple[str, ...] = ()
    rules: Tuple[str, ...] = ()
    users: Tuple[str, ...] = ()
    services: Tuple[str, ...] = ()
    outcomes: Tuple[str, ...] = ()
    host_tags: Tuple[str, ...] = ()
    severity: str = SEVERITIES[0]
    fold: int = 0
    """Seconds in which repetitions are told as one; 0: none are."""

    def matches(self, notice: Notice, host_tags: FrozenSet[str]) -> bool:
        """Say whether it leads anywhere; `host_tags` are for entries that do not name them."""
        tags = sorted(host_tags if notice.host_tags is None else notice.host_tags)
        return notice.severity > SEVERITIES.index(self.severity) and all(
            _any(patterns, values)
            for patterns, values in (
                (self.kinds, (notice.kind,)),
                (self.rules, (notice.rule,)),
                (self.users, (notice.user,)),
                (self.services, (notice.service,)),
                (self.outcomes, (notice.outcome,)),
                (self.host_tags, tags),
            )
        )


def fold_of(
    notice: Notice, channel: str, routes: Sequence[Route], host_tags: FrozenSet[str]
) -> Optional[int]:
    """Say for how long repetitions are folded in a channel; None if it is not told at all.

    Routes do not depend on their order: where several lead there, the shortest time counts.
    """
    folds = [
        route.fold
        for route in routes
        if channel in route.channels and route.matches(notice, host_tags)
    ]
    return min(folds) if folds else None


# -----------------------------------------------------------------------------
# What is held back


@dataclass
class Group:
    """Notices that were held back, and are told as one when the time is over."""

    id: str
    kind: str
    title: str
    host: str
    machine: str
    since_ns: int
    until_ns: int
    count: int = 0
    severity: int = 1
    first: str = ""
    last: str = ""
    kinds: Dict[str, int] = field(default_factory=dict)
    sources: List[str] = field(default_factory=list)

    def add(self, notice: Notice) -> None:
        """Count one more in."""
        self.first = self.first or notice.id
        self.last = notice.id
        self.count += notice.count
        self.severity = max(self.severity, notice.severity)
        self.kinds[notice.kind] = self.kinds.get(notice.kind, 0) + notice.count
        if notice.source is not None:
            source = notice.source.rpartition(":")[0] or notice.source
            if source not in self.sources and len(self.sources) < MAX_SOURCES:
                self.sources.append(source)

    def notice(self) -> Notice:
        """Tell them as one."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kinds.items()))
        lines = [("notices", kinds), ("first", self.first), ("last", self.last)]
        lines += [("from", ", ".join(map(one_line, self.sources)))] if self.sources else []
        data: Json = {
            "count": self.count,
            "kinds": dict(self.kinds),
            "first": self.first,
            "last": self.last,
            "sources": list(self.sources),
            "since": format_time(self.since_ns),
            "until": format_time(self.until_ns),
        }
        return Notice(
            id=f"{self.id}:{self.kind}:{self.count}",
            kind=self.kind,
            severity=self.severity,
            time_ns=self.until_ns,
            host=self.host,
            machine=self.machine,
            title=f"{self.count} more: {self.title}",
            lines=tuple(lines),
            data=data,
            count=self.count,
        )


@dataclass
class Desk:
    """What one channel holds back. Reckons by the time of entries, so that it can be repeated."""

    groups: Dict[str, Group] = field(default_factory=dict)
    minute_ns: int = 0
    sent: int = 0
    sent_high: int = 0

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Desk:
        """Read to_json()'s form. Raises: KeyError, TypeError, ValueError if it is no such thing"""
        groups = {str(key): Group(**one) for key, one in dict(value["groups"]).items()}
        numbers = (value["minute_ns"], value["sent"], value["sent_high"])
        if not all(isinstance(one, int) for one in numbers):
            raise TypeError("a number of a desk is none")
        return cls(groups, *numbers)

    def to_json(self) -> Json:
        """Give plain values."""
        return asdict(self)

    def take(self, notice: Notice, fold_s: int, rate: int) -> List[Notice]:
        """Say what is to be told now that this has come; `rate` is for each minute."""
        told = self.due(notice.time_ns, rate)
        key = json.dumps([notice.kind, notice.rule, notice.user])
        if fold_s and key in self.groups:
            self.groups[key].add(notice)
            return told
        if fold_s and len(self.groups) < MAX_GROUPS:
            until_ns = notice.time_ns + fold_s * 10**9
            kind = f"{notice.kind}.repeated"
            self.groups[key] = _open_group(notice, kind, notice.title, until_ns)
        return told + self._within_rate(notice, rate)

    def due(self, now_ns: int, rate: int) -> List[Notice]:
        """Say what has been held back long enough, or since a time that is yet to come."""
        over = [
            key
            for key, group in self.groups.items()
            if group.until_ns <= now_ns or group.since_ns > now_ns
        ]
        told: List[Notice] = []
        for key, group in sorted(
            ((key, self.groups.pop(key)) for key in over), key=lambda one: one[1].until_ns
        ):
            if not group.count:
                continue
            one = group.notice()
            told += self._within_rate(one, rate) if key.startswith("[") else [one]
        return told

    def next_due_ns(self) -> Optional[int]:
        """Say when due() has something next, unless more comes."""
        return min((one.until_ns for one in self.groups.values() if one.count), default=None)

    def _within_rate(self, notice: Notice, rate: int) -> List[Notice]:
        if not 0 <= notice.time_ns - self.minute_ns < MINUTE_NS:
            self.minute_ns, self.sent, self.sent_high = notice.time_ns, 0, 0
        # Many small ones, which a user can cause, do not keep back what is grave.
        high = notice.severity >= HIGH
        if (self.sent_high if high else self.sent) < rate:
            self.sent, self.sent_high = self.sent + (not high), self.sent_high + high
            return [notice]
        key = "rate-high" if high else "rate"
        if key not in self.groups:
            until_ns = self.minute_ns + MINUTE_NS
            title = f"than the {rate} a minute that this channel is told one by one"
            self.groups[key] = _open_group(notice, "digest", title, until_ns)
        self.groups[key].add(notice)
        return []


def _open_group(notice: Notice, kind: str, title: str, until_ns: int) -> Group:
    return Group(
        notice.id, kind, title, notice.host, notice.machine, notice.time_ns, until_ns,
        severity=notice.severity,
    )  # fmt: skip


# -----------------------------------------------------------------------------
# How they look


def subject_line(notice: Notice) -> str:
    return one_line(f"[recuse] {notice.host}: {notice.title}", 200)


def as_text(notice: Notice, commands: bool = False) -> str:
    """Write a notice for people."""
    lines = list(notice.lines)
    command = _command(notice.data)
    if commands and command is not None:
        lines.append(("command", one_line(command)))
    lines.append(("host", notice.host))
    lines.append(("time", format_time(notice.time_ns)))
    lines.append(("severity", SEVERITIES[notice.severity - 1]))
    if notice.origin is not None:
        lines.append(("entry", notice.id))
    text = f"{notice.title}\n\n"
    text += "".join(f"{name.replace('_', ' ') + ':':<16}{value}\n" for name, value in lines)
    if notice.subject is not None:
        text += f"\nrecuse show {one_line(notice.subject)}\n"
    return text


def _command(data: Json) -> Optional[str]:
    found = _object(_object(data.get("actor")).get("process")).get("cmd_line")
    return found if isinstance(found, str) else None


def without_commands(data: Json) -> Json:
    """Leave out of an event what users typed as their command: it may hold a password."""
    cut: Json = json.loads(json.dumps(data))
    _object(_object(cut.get("actor")).get("process")).pop("cmd_line", None)
    _object(_object(_object(cut.get("unmapped")).get("recuse")).get("facts")).pop("command", None)
    return cut


def reverse_dns(org: str) -> str:
    """Turn example.org/team into org.example, as the types of CloudEvents begin."""
    return ".".join(reversed(org.partition("/")[0].lower().split(".")))


def as_cloudevent(notice: Notice, org: str, commands: bool = False) -> bytes:
    """Write a notice as a CloudEvents 1.0 event in structured JSON."""
    schema = _DATA_SCHEMAS.get(notice.data.get("class_uid", 0))
    event: Json = {
        "specversion": "1.0",
        "id": notice.id,
        "source": f"urn:recuse:host:{notice.machine}",
        "type": f"{reverse_dns(org)}.recuse.{notice.kind}.v1",
        "time": format_time(notice.time_ns),
        "datacontenttype": "application/json",
        "data": notice.data if commands else without_commands(notice.data),
        "severity": SEVERITIES[notice.severity - 1],
    }
    more = {
        "subject": notice.subject,
        "dataschema": schema,
        "logindex": notice.index,
        "leafhash": notice.leaf,
        "repeatcount": notice.count if notice.count > 1 else None,
    }
    event.update({key: value for key, value in more.items() if value is not None})
    return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode(
        "utf-8", "backslashreplace"
    )


def parse_secret(text: str) -> bytes:
    """Read a Standard Webhooks secret: whsec_ and base64 of 24 to 64 bytes.

    Raises: ValueError, which does not show it
    """
    try:
        if not text.startswith("whsec_"):
            raise ValueError
        secret = base64.b64decode(text[len("whsec_") :], validate=True)
    except ValueError:
        raise ValueError("no secret of the form whsec_BASE64") from None
    if not 24 <= len(secret) <= 64:
        raise ValueError(f"the secret has {len(secret)} bytes, not 24 to 64")
    return secret


def sign_webhook(
    secrets: Sequence[bytes], token: str, timestamp_s: int, body: bytes
) -> Dict[str, str]:
    """Give the headers of Standard Webhooks; several secrets, so that they can be changed."""
    signed = f"{token}.{timestamp_s}.".encode() + body
    signatures = [
        "v1," + base64.b64encode(hmac.new(secret, signed, "sha256").digest()).decode()
        for secret in secrets
    ]
    return {
        "webhook-id": token,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": " ".join(signatures),
    }


_DOMAIN = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?\Z")


def as_mail(
    notice: Notice, sender: str, to: Sequence[str], org: str, commands: bool = False
) -> EmailMessage:
    """Write a notice as a mail (RFC 5322), with the time of the event and an id of its own."""
    domain = notice.host if _DOMAIN.match(notice.host) else "localhost"
    mail = EmailMessage(policy=SMTP)
    mail["From"] = Address("recuse", addr_spec=sender)
    mail["To"] = ", ".join(to)
    mail["Subject"] = subject_line(notice)
    moment = datetime.fromtimestamp(notice.time_ns // 10**9, timezone.utc)
    mail["Date"] = format_datetime(moment)
    mail["Message-ID"] = f"<{notice.token}@{domain}>"
    mail["List-Id"] = f"recuse notices <recuse.{org.replace('/', '.')}>"
    mail["Auto-Submitted"] = "auto-generated"
    mail["X-Recuse-Kind"] = notice.kind
    mail["X-Recuse-Entry"] = one_line(notice.id)
    if notice.severity >= HIGH:
        mail["Importance"] = "high"
    mail.set_content(as_text(notice, commands), cte="quoted-printable")
    return mail
