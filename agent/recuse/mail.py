"""What approvers and hosts send each other through a collector, and how an approver asks it.

Pure. An item of mail proves itself to the host that it is for: an approval is a signature over a
request, the end of one and a review are signed statements. The collector reads none of it. What an
approver signs towards the collector lets them in, and nothing else.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any, Callable, Dict, Mapping, Optional, Sequence, Tuple, TypeVar

from recuse import strictjson
from recuse.errors import CryptoError

MAX_ITEM_BYTES = 12 << 10
"""Bytes of one item: a request or signature of the longest kind, written as JSON, and no more."""
MAX_WORDS = 512  # characters of what people write, and of what a host answers
ACCESS_WINDOW_S = 300
"""How far the time that an approver states may be from the collector's clock, in seconds."""
SCHEME = "Recuse-SSHSIG"

_VERSION = "mail/1"
_ENDS = ("rejection", "revocation")
_FIELDS: Mapping[str, Tuple[str, ...]] = {
    "approval": ("grant", "signature"),
    "review": ("grant", "signature"),
    "end": ("statement", "signature"),
    "request": ("request",),
}
_HEADER = re.compile(r"Recuse-SSHSIG (0|[1-9][0-9]{0,14}) ([A-Za-z0-9+/]{16,8000}={0,2})\Z")
_BEGIN, _END = "-----BEGIN SSH SIGNATURE-----", "-----END SSH SIGNATURE-----"


# Items


@dataclass(frozen=True)
class Item:
    """One thing sent to a host: `kind` is approval, review, end or request."""

    kind: str
    grant: Optional[str] = None
    statement: Optional[str] = None
    request: Optional[str] = None
    signature: Optional[str] = None  # armored


def item_id(body: bytes) -> str:
    """Name an item by its content."""
    return hashlib.sha256(body).hexdigest()


def write_item(item: Item) -> bytes:
    """Write an item. Raises: CryptoError if it is too long"""
    told = {name: getattr(item, name) for name in _FIELDS[item.kind]}
    body = json.dumps(
        {"recuse": _VERSION, "kind": item.kind, **told}, ensure_ascii=False
    ).encode()  # fmt: skip
    if len(body) > MAX_ITEM_BYTES:
        raise CryptoError(f"{len(body)} bytes are too many to be sent to a host")
    return body


def read_item(body: bytes) -> Item:
    """Read what write_item() wrote. Raises: CryptoError"""
    told = _json(body, "no item of mail")
    names = _FIELDS.get(str(told.get("kind")))
    if told.get("recuse") != _VERSION or names is None:
        raise CryptoError("no item of mail of a kind that is known here")
    if set(told) != {"recuse", "kind", *names}:
        raise CryptoError(f"an item of mail does not have exactly {', '.join(names)}")
    values = {name: told[name] for name in names}
    if not all(isinstance(value, str) for value in values.values()):
        raise CryptoError("an item of mail has a value that is no text")
    return Item(told["kind"], **values)


# The end of a request

Signed = TypeVar("Signed")


@dataclass(frozen=True)
class Statement:
    """What somebody signs who turns a request down, or takes a grant back."""

    kind: str  # rejection or revocation
    grant: str
    org: str
    host: str
    digest: str  # of the request
    words: str = ""


def write_statement(told: Statement) -> bytes:
    """Write a statement as it is signed, a field a line. Raises: CryptoError"""
    if told.kind not in _ENDS:
        raise CryptoError(f"{told.kind!r:.40} ends no request")
    if len(told.words) > MAX_WORDS or not told.words.isprintable():
        raise CryptoError(f"words are longer than {MAX_WORDS} characters, or cannot be shown")
    fields = {
        "recuse": f"{told.kind}/1",
        "grant": told.grant,
        "org": told.org,
        "host": told.host,
        "request_sha256": told.digest,
        "words": told.words,
    }
    return json.dumps(fields, ensure_ascii=False, indent=1).encode() + b"\n"


def read_statement(raw: bytes) -> Statement:
    """Read what write_statement() writes, and nothing else. Raises: CryptoError"""
    names = ("recuse", "grant", "org", "host", "request_sha256", "words")

    def make(recuse: str, *more: str) -> Statement:
        return Statement(recuse.partition("/")[0], *more)

    return _read_signed(raw, "no statement about a request", names, make, write_statement)


# The review of broken glass


@dataclass(frozen=True)
class Review:
    """What somebody signs who has looked at what was done behind broken glass."""

    debt: str
    org: str
    host: str
    user: str
    digest: str  # of the request
    why: str


def write_review(told: Review) -> bytes:
    """Write what the reviewer of a debt signs, a field a line."""
    fields = {
        "recuse": "review/1",
        "debt": told.debt,
        "org": told.org,
        "host": told.host,
        "user": told.user,
        "request_sha256": told.digest,
        "why": told.why,
    }
    return json.dumps(fields, ensure_ascii=False, indent=1).encode() + b"\n"


def read_review(raw: bytes) -> Review:
    """Read what write_review() writes, and nothing else. Raises: CryptoError"""
    names = ("debt", "org", "host", "user", "request_sha256", "why")
    return _read_signed(raw, "no statement of a review", names, Review, write_review)


def _read_signed(
    raw: bytes,
    fault: str,
    names: Sequence[str],
    make: Callable[..., Signed],
    write: Callable[[Signed], bytes],
) -> Signed:
    """Read fields that are texts, if they stand exactly as `write` writes them."""
    told = _json(raw, fault)
    texts = [told[name] for name in names if isinstance(told.get(name), str)]
    if len(texts) == len(names):
        found = make(*texts)
        if write(found) == raw:
            return found
    raise CryptoError(f"{fault}: it is not written as one")


def _json(raw: bytes, fault: str) -> Dict[str, Any]:
    if len(raw) > MAX_ITEM_BYTES:
        raise CryptoError(f"{fault}: it has {len(raw)} bytes")
    try:
        found = strictjson.load_text(raw)
    except ValueError:
        raise CryptoError(f"{fault}: not JSON, a field stands twice, or a text is none") from None
    if not isinstance(found, dict):
        raise CryptoError(fault)
    return found


# How an approver asks a collector


def access_namespace(org: str) -> str:
    """Name what approvers sign their requests to a collector for."""
    return f"recuse-mailbox@{org}"


def access_text(vkey: str, method: str, path: str, created_s: int, digest: str) -> bytes:
    """Give what an approver signs: this request, to this collector, now. `digest` is in hex."""
    return f"recuse/access/v1\n{vkey}\n{method} {path}\n{created_s}\nsha-256 {digest}\n".encode()


def write_access(created_s: int, armored: str) -> str:
    """Write the Authorization field from a signature that ssh-keygen made."""
    lines = armored.split("\n")
    return f"{SCHEME} {created_s} {''.join(lines[lines.index(_BEGIN) + 1 : lines.index(_END)])}"


def read_access(field: str) -> Tuple[int, str]:
    """Return the time and the armored signature of an Authorization field. Raises: CryptoError"""
    found = _HEADER.match(field)
    if found is None:
        raise CryptoError(f"authorization is no {SCHEME}")
    text = found.group(2)
    try:
        base64.b64decode(text, validate=True)
    except binascii.Error:
        raise CryptoError(f"authorization is no {SCHEME}: base64 is malformed") from None
    lines = [text[at : at + 70] for at in range(0, len(text), 70)]
    return int(found.group(1)), "\n".join([_BEGIN, *lines, _END]) + "\n"
