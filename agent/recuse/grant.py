"""What approvers sign, and whether enough of the right people have signed it.

Pure. The agent asks this before it lets a session be exempt, and an auditor asks it again years
later with nothing but the entries and the file of approvers: both get the same answer.
"""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Callable, Dict, FrozenSet, List, Optional, Sequence, Set, Tuple

from recuse import amounts, sshsig, strictjson
from recuse.approval import LEVELS, SCOPES, Asked
from recuse.errors import CryptoError, LedgerError
from recuse.grantrecords import MAX_REQUEST_BYTES, Approval, Request
from recuse.records import format_time, parse_time
from recuse.sshsig import AllowedSigners, RevokedKeys, SignatureRefused

VERSION = "request/1"
MAX_APPROVALS = 32
"""Signatures over one request that are looked at: each costs up to a millisecond."""

_TEXTS = ("id", "org", "host", "user", "requester", "level", "issued", "not_before", "expires")
_MORE_TEXTS = ("reason", "why")
_MAYBE_TEXTS = ("scope", "source", "ticket")
_NUMBERS = ("uid", "uses")
_FIELDS = frozenset(
    {"recuse", "supervised", "max_seconds", *_TEXTS, *_MORE_TEXTS, *_MAYBE_TEXTS, *_NUMBERS}
)


@dataclass(frozen=True)
class GrantFault:
    """One reason why an approval, or a grant, does not count; `code` is for programs."""

    code: str
    message: str


# The request


@dataclass(frozen=True)
class Wanted:
    """What the bytes of a request say."""

    id: str
    org: str
    asked: Asked
    uid: int
    source: Optional[str]  # address or network that the sessions have to come from
    issued: datetime

    @property
    def namespace(self) -> str:
        return namespace_of(self.org)


def namespace_of(org: str) -> str:
    """Name what approvals of an organisation are signed for."""
    return f"recuse-grant@{org}"


def namespace_in(origin: str) -> str:
    """Name what approvals are signed for on a host, whose ledger's name its organisation begins."""
    return namespace_of(origin.partition("/recuse/host/")[0])


def write_request(wanted: Wanted) -> bytes:
    """Write a request as it is signed: one line for each field, for people to read.

    Raises: CryptoError if it is too long, or has names in it that are not UTF-8
    """
    asked = wanted.asked
    fields: Dict[str, Any] = {
        "recuse": VERSION,
        "id": wanted.id,
        "org": wanted.org,
        "host": asked.host,
        "user": asked.user,
        "uid": wanted.uid,
        "requester": asked.requester,
        "scope": None if asked.scope == "session" else asked.scope,
        "level": asked.level,
        "supervised": asked.supervised,
        "source": wanted.source,
        "issued": _written(wanted.issued),
        "not_before": _written(asked.not_before),
        "expires": _written(asked.expires),
        "uses": asked.uses,
        "max_seconds": asked.max_seconds,
        "reason": asked.reason,
        "ticket": asked.ticket,
        "why": asked.why,
    }
    present = {key: value for key, value in fields.items() if value is not None}
    try:
        raw = json.dumps(present, ensure_ascii=False, indent=1).encode() + b"\n"
    except UnicodeEncodeError:  # of an account, which may be any bytes
        raise CryptoError("a name in the request is not UTF-8", "see: getent passwd") from None
    if len(raw) > MAX_REQUEST_BYTES:
        raise CryptoError(f"a request of {len(raw)} bytes is too long", "say it in fewer words")
    return raw


def read_request(raw: bytes) -> Wanted:
    """Read the bytes of a request: those that write_request() writes, and no others.

    Raises: CryptoError
    """
    if len(raw) > MAX_REQUEST_BYTES:
        raise CryptoError(f"a request of {len(raw)} bytes is too long")
    try:
        told = strictjson.load_text(raw)
    except ValueError:
        raise CryptoError("it is no request: not JSON, or a field stands twice") from None
    if not isinstance(told, dict) or told.get("recuse") != VERSION:
        raise CryptoError(f"it is no request of kind {VERSION}")
    unknown = sorted(set(told) - _FIELDS)
    if unknown:
        raise CryptoError(f"it has the field {unknown[0]!r:.40}, which no request has")
    for key in (*_TEXTS, *_MORE_TEXTS):
        if not isinstance(told.get(key), str):
            raise CryptoError(f"it has no text as {key}")
    for key in _MAYBE_TEXTS:
        if not isinstance(told.get(key, ""), str):
            raise CryptoError(f"its {key} is no text")
    for key in (*_NUMBERS, *(["max_seconds"] if "max_seconds" in told else [])):
        if type(told.get(key)) is not int or told[key] < 0:
            raise CryptoError(f"its {key} is no number")
    if not isinstance(told.get("supervised"), bool):
        raise CryptoError("it does not say whether it is supervised")
    try:
        asked = Asked(
            user=told["user"], requester=told["requester"], host=told["host"],
            level=told["level"], not_before=_read(told["not_before"]),
            expires=_read(told["expires"]), uses=told["uses"], reason=told["reason"],
            ticket=told.get("ticket"), why=told["why"], max_seconds=told.get("max_seconds"),
            supervised=told["supervised"], scope=told.get("scope", "session"),
        )  # fmt: skip
        wanted = Wanted(
            told["id"], told["org"], asked, told["uid"], told.get("source"), _read(told["issued"])
        )
    except (LedgerError, ValueError, OverflowError, OSError):
        raise CryptoError("it has a time that is none, in UTC to the second") from None
    if asked.level not in LEVELS:
        raise CryptoError(f"its level is {asked.level!r:.40}, none of {', '.join(LEVELS)}")
    if asked.scope not in SCOPES:
        raise CryptoError(f"its scope is {asked.scope!r:.40}, none of {', '.join(SCOPES)}")
    if write_request(wanted) != raw:
        raise CryptoError("it is not written as one: a field a line, in order")
    return wanted


def _written(time: datetime) -> str:
    return format_time(round(time.timestamp()) * 10**9)[:19] + "Z"


def _read(written: str) -> datetime:
    return datetime.fromtimestamp(parse_time(written) // 10**9, timezone.utc)


# Who has approved


@dataclass(frozen=True)
class Terms:
    """What is asked of approvals."""

    approvers: int  # how many people
    principals: Optional[FrozenSet[str]] = None  # of the groups they come from; None: of any
    key_types: FrozenSet[str] = frozenset()  # none: any
    verification: bool = False  # PIN or finger
    local: bool = False  # a password on the host, of which there is the agent's word, counts
    origins: Tuple[str, ...] = ()  # pages on which browsers may sign


@dataclass(frozen=True)
class Counted:
    """One approval that counts."""

    principal: str
    names: FrozenSet[str]
    """Everything the signer goes by: other principals, and whose the bare key is besides."""
    method: str
    key: Optional[sshsig.PublicKey] = None
    counter: Optional[int] = None  # of a security key


@dataclass(frozen=True)
class Checked:
    """What the approvals of a request add up to."""

    people: int
    """How many different people: who shares a principal, an account or a key is one."""
    counted: Tuple[Counted, ...]
    faults: Tuple[GrantFault, ...]  # of approvals that do not count
    needed: int

    @property
    def enough(self) -> bool:
        return self.people >= self.needed

    @property
    def shortfall(self) -> str:
        """Say how many hold, and why what else is there does not count."""
        why = "; ".join(one.message for one in self.faults)
        told = f"only {self.people} of {amounts.number(self.needed, 'approval')} hold"
        return f"{told}: {why}" if why else told


def account_of(principal: str) -> FrozenSet[str]:
    """Say which account a person has, if nothing else is known: what stands before the @."""
    return frozenset({principal.partition("@")[0]})


def check_grant(
    request: Request,
    approvals: Sequence[Approval],
    signers: Optional[AllowedSigners],
    terms: Terms,
    namespace: str,
    at: datetime,
    revoked: Optional[RevokedKeys] = None,
    accounts_of: Callable[[str], FrozenSet[str]] = account_of,
) -> Checked:
    """Say how many people have approved a request with keys that count at a time.

    Pure: same arguments, same answer, in whatever order the approvals are. An approval that does
    not count is a fault, and takes nothing from the others. Without `signers` no signature counts.
    """
    people = frozenset({request.asked.user.casefold(), request.asked.requester.casefold()})
    counted: List[Counted] = []
    faults: List[GrantFault] = []
    if len(approvals) > MAX_APPROVALS:
        faults.append(GrantFault("many", f"only {MAX_APPROVALS} approvals are looked at"))
    for approval in approvals[:MAX_APPROVALS]:
        try:
            one = _count(request, approval, signers, terms, namespace, at, revoked)
            own = sorted(
                name
                for name in one.names
                if any(account.casefold() in people for account in accounts_of(name))
            )
            if own:
                raise SignatureRefused(
                    "self", f"{own[0]} asked for this, or it is for them: nobody approves their own"
                )
        except SignatureRefused as error:
            faults.append(GrantFault(error.code, f"{approval.principal}: {error.message}"))
        else:
            counted.append(one)
    groups = _people(counted, accounts_of)
    faults += [
        GrantFault("twice", f"{' and '.join(group)} is one person, by name, account or key")
        for group in groups
        if len(group) > 1
    ]
    return Checked(len(groups), tuple(counted), tuple(faults), terms.approvers)


def _count(
    request: Request,
    approval: Approval,
    signers: Optional[AllowedSigners],
    terms: Terms,
    namespace: str,
    at: datetime,
    revoked: Optional[RevokedKeys],
) -> Counted:
    """Check one approval by itself. Raises: SignatureRefused"""
    if approval.digest != request.digest:
        raise SignatureRefused("altered", "the approval is of another request")
    if approval.method == "pam":
        if not terms.local:
            raise SignatureRefused("local", "approval by password does not count here")
        _check_group(frozenset({approval.principal}), terms)
        return Counted(approval.principal, frozenset({approval.principal}), "pam")
    if approval.method != "signature" or approval.signature is None:
        raise SignatureRefused("unsigned", "the approval has no signature")
    if signers is None:
        raise SignatureRefused("unknown-signer", "it is not known whose signatures count")
    signed = sshsig.verify(
        request.raw, approval.signature.encode(), signers, namespace, at, revoked, terms.origins
    )
    if approval.principal not in signed.principals:
        raise SignatureRefused("unknown-signer", f"it was signed by {signed.principals[0]}")
    if terms.key_types and signed.key.type not in terms.key_types:
        kinds = ", ".join(sorted(terms.key_types))
        raise SignatureRefused("key-type", f"a {signed.key.type} key is not enough: {kinds}")
    if terms.verification and not signed.user_verified:
        raise SignatureRefused("no-verification", "it was signed without PIN or finger")
    _check_group(frozenset({approval.principal}), terms)
    names = frozenset(signed.principals) | signers.holders(signed.key)
    return Counted(approval.principal, names, "signature", signed.key, signed.counter)


def _check_group(names: FrozenSet[str], terms: Terms) -> None:
    if terms.principals is not None and not names & terms.principals:
        raise SignatureRefused("group", "they are in none of the groups that approve")


def _people(
    counted: Sequence[Counted], accounts_of: Callable[[str], FrozenSet[str]]
) -> List[List[str]]:
    """Put together the approvals that may be of one person."""
    groups: List[Tuple[Set[object], List[str]]] = []
    for one in counted:
        marks: Set[object] = {name.casefold() for name in one.names}
        marks |= {("account", acc.casefold()) for name in one.names for acc in accounts_of(name)}
        if one.key is not None:
            marks.add(one.key.material)
        names = [one.principal]
        for group in [group for group in groups if group[0] & marks]:
            groups.remove(group)
            marks |= group[0]
            names += group[1]
        groups.append((marks, names))
    return [sorted(names) for _, names in groups]


def is_from(source: Optional[str], network: str) -> bool:
    """Say whether an address, perhaps with a port, is in a network; an unknown one is in none."""
    host = (source or "").strip()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        address = ipaddress.ip_address(host)
        mapped = getattr(address, "ipv4_mapped", None)
        return (mapped or address) in ipaddress.ip_network(network)
    except ValueError:
        return False
