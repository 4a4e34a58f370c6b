"""Sign and check requests to the collector: RFC 9421 (ed25519) with RFC 9530 Content-Digest.

What is covered is what a proxy leaves alone: method, path, digest of the body and media type. The
authority, the scheme and the length are not, because balancers rewrite them. The parser reads only
the canonical serialisation that we and other libraries emit, so that the text that was signed is
the text that was sent and nothing has to be serialised again.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import Callable, List, Mapping, Sequence, Tuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from recuse.checkpoint import pack_bundle, unpack_bundle
from recuse.errors import CryptoError, LedgerError

COMPONENTS: Tuple[str, ...] = ("@method", "@path", "content-digest", "content-type")
LABEL = "recuse"
TAG = "recuse-v1"
ALGORITHM = "ed25519"
WINDOW_S = 15 * 60
"""How far `created` may be from the receiver's clock, either way, in seconds."""
MAX_FIELD = 4096
"""Longest Signature-Input or Signature field looked at, in characters."""

OCTETS = "application/octet-stream"
SIZE_TYPE = "text/x.tlog.size"
MAX_BODY = 1 << 20
"""Bytes of one request body: what a stock nginx lets through."""

_KEYID = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,1024}\Z")
_INPUT = re.compile(
    r"(?P<label>[a-z*][a-z0-9_.*-]{0,63})="
    r"(?P<params>\((?P<items>\"[^\"\\ ]+\"(?: \"[^\"\\ ]+\")*)\)(?P<rest>(?:;[^;]+)*))\Z"
)
_INTEGER = re.compile(r"(?:0|[1-9][0-9]{0,14})\Z")
_STRING = re.compile(r"\"([\x20\x21\x23-\x5b\x5d-\x7e]*)\"\Z")
_BYTES = re.compile(r"(?P<label>[a-z*][a-z0-9_.*-]{0,63})=:(?P<b64>[A-Za-z0-9+/]{86}==):\Z")
_DIGEST = re.compile(r"sha-256=:([A-Za-z0-9+/]{43}=):\Z")


class ClockError(CryptoError):
    """A good signature whose `created` lies outside the window.

    `skew_s` is the sender's clock minus the receiver's.
    """

    def __init__(self, message: str, skew_s: int) -> None:
        super().__init__(message)
        self.skew_s = skew_s


@dataclass(frozen=True)
class SignatureInput:
    """What a Signature-Input field states; `params` is its exact text from the parenthesis on."""

    label: str
    components: Tuple[str, ...]
    created: int
    keyid: str
    params: str


def content_digest(body: bytes) -> str:
    """Return the Content-Digest field for `body`."""
    return "sha-256=:" + base64.b64encode(hashlib.sha256(body).digest()).decode("ascii") + ":"


def check_content_digest(field: str, body: bytes) -> None:
    """Compare a Content-Digest field with the body that came.

    Raises: CryptoError if it is malformed, of another algorithm, or not that of `body`.
    """
    if not hmac.compare_digest(digest_of(field), hashlib.sha256(body).digest()):
        raise CryptoError("content-digest does not match the body")


def digest_of(field: str) -> bytes:
    """Return what a Content-Digest field states. Raises: CryptoError as above"""
    match = _DIGEST.match(field)
    if match is None:
        raise CryptoError("content-digest is not one sha-256 value")
    return _decode(match.group(1))


def signature_base(components: Sequence[Tuple[str, str]], params: str) -> bytes:
    """Return the bytes that are signed for (name, value) pairs, in the order of the pairs."""
    lines = ['"%s": %s' % pair for pair in components]
    lines.append('"@signature-params": ' + params)
    return "\n".join(lines).encode("ascii", "strict")


def signature_params(created: int, keyid: str) -> str:
    """Return the parameters of our signatures.

    Raises: CryptoError if `keyid` cannot stand in a structured field as it is.
    """
    if _KEYID.match(keyid) is None:
        raise CryptoError("key id %r is not plain ascii without spaces and quotes" % keyid)
    names = " ".join('"%s"' % name for name in COMPONENTS)
    return '(%s);created=%d;keyid="%s";alg="%s";tag="%s"' % (names, created, keyid, ALGORITHM, TAG)


def sign_request(
    method: str,
    path: str,
    content_type: str,
    body: bytes,
    keyid: str,
    created: int,
    sign: Callable[[bytes], bytes],
) -> Mapping[str, str]:
    """Return the fields to add to a request: digest, type, Signature-Input and Signature.

    `path` is as on the request line, without a query; `created` is Unix time in seconds; `sign`
    makes a raw Ed25519 signature.

    Raises: CryptoError if the key id or a value cannot be signed.
    """
    digest = content_digest(body)
    params = signature_params(created, keyid)
    values = {
        "@method": method,
        "@path": path,
        "content-digest": digest,
        "content-type": content_type,
    }
    base = _base(values, COMPONENTS, params)
    signature = base64.b64encode(sign(base)).decode("ascii")
    return {
        "Content-Type": content_type,
        "Content-Digest": digest,
        "Signature-Input": "%s=%s" % (LABEL, params),
        "Signature": "%s=:%s:" % (LABEL, signature),
    }


def parse_input(field: str) -> SignatureInput:
    """Read a Signature-Input field that holds one signature of ours.

    Raises: CryptoError if anything is missing, unknown, doubled or not canonical, if the tag or the
    algorithm is another, or if not exactly our four components are covered.
    """
    match = _INPUT.match(field) if len(field) <= MAX_FIELD else None
    if match is None:
        raise CryptoError("signature-input is malformed")
    components = tuple(item[1:-1] for item in match.group("items").split(" "))
    if sorted(components) != sorted(COMPONENTS):
        raise CryptoError("signature-input covers %s" % " ".join(components)[:200])
    given = {}
    for part in match.group("rest").split(";")[1:]:
        name, _, value = part.partition("=")
        if name in given:
            raise CryptoError("signature-input gives %r twice" % name[:40])
        given[name] = value
    if set(given) != {"created", "keyid", "alg", "tag"}:
        raise CryptoError("signature-input has parameters %s" % " ".join(sorted(given))[:200])
    if _INTEGER.match(given["created"]) is None:
        raise CryptoError("signature-input: created is not an integer")
    keyid = _string(given, "keyid")
    if _KEYID.match(keyid) is None:
        raise CryptoError("signature-input: keyid is malformed")
    if _string(given, "alg") != ALGORITHM:
        raise CryptoError("signature-input: algorithm is not %s" % ALGORITHM)
    if _string(given, "tag") != TAG:
        raise CryptoError("signature-input: tag is not %s" % TAG)
    return SignatureInput(
        match.group("label"), components, int(given["created"]), keyid, match.group("params")
    )


def parse_signature(field: str, label: str) -> bytes:
    """Return the 64 bytes of the one signature in a Signature field, which must bear `label`.

    Raises: CryptoError
    """
    match = _BYTES.match(field) if len(field) <= MAX_FIELD else None
    if match is None:
        raise CryptoError("signature is malformed")
    if match.group("label") != label:
        raise CryptoError("signature and signature-input bear different labels")
    return _decode(match.group("b64"))


def verify_request(
    parsed: SignatureInput,
    signature: str,
    method: str,
    path: str,
    content_type: str,
    digest: str,
    public: bytes,
    now_s: int,
) -> None:
    """Check the signature of a request; the body is checked apart, with check_content_digest().

    `signature` and `digest` are the fields as they came, `public` the raw key for `parsed.keyid`.

    Raises: CryptoError if it is not the key's signature over these values; ClockError if it is, but
    made too long before or after `now_s`.
    """
    raw = parse_signature(signature, parsed.label)
    values = {
        "@method": method,
        "@path": path,
        "content-digest": digest,
        "content-type": content_type,
    }
    base = _base(values, parsed.components, parsed.params)
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(raw, base)
    except (InvalidSignature, ValueError) as error:
        raise CryptoError("signature of the request does not verify") from error
    skew = parsed.created - now_s
    if abs(skew) > WINDOW_S:
        raise ClockError("request was signed %d s off this clock" % skew, skew)


def blob_path(digest: str) -> str:
    """Name the resource of a blob by its SHA-256 in hex."""
    return f"/v1/blobs/sha-256/{digest}"


def host_path(origin: str, verb: str) -> str:
    """Name a resource of a ledger: append, checkpoint or stage/START."""
    return f"/v1/hosts/{hashlib.sha256(origin.encode()).hexdigest()}/{verb}"


def pack_append(note: bytes, entries: Sequence[bytes]) -> bytes:
    """Write the body of an append request: a counted checkpoint note, then framed entries."""
    return len(note).to_bytes(4, "big") + note + pack_bundle(entries)


def unpack_append(body: bytes) -> Tuple[bytes, List[bytes]]:
    """Read the body of an append request.

    Raises: LedgerError if it is cut or malformed
    """
    end = 4 + int.from_bytes(body[:4], "big")
    if len(body) < max(end, 4):
        raise LedgerError(f"append request of {len(body)} bytes is cut")
    return body[4:end], unpack_bundle(body[end:])


def _base(values: Mapping[str, str], order: Sequence[str], params: str) -> bytes:
    for name, value in values.items():
        if not value or value != value.strip() or not value.isascii() or not value.isprintable():
            raise CryptoError("%s cannot be signed: %r" % (name, value[:80]))
    return signature_base([(name, values[name]) for name in order], params)


def _string(given: Mapping[str, str], name: str) -> str:
    match = _STRING.match(given[name])
    if match is None:
        raise CryptoError("signature-input: %s is not a string" % name)
    return match.group(1)


def _decode(text: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise CryptoError("base64 is malformed") from error
    if base64.b64encode(raw).decode("ascii") != text:
        raise CryptoError("base64 is not canonical")
    return raw
