"""Check signatures made with `ssh-keygen -Y sign`: who signed exactly these bytes, and may they?

Pure. Formats: PROTOCOL.sshsig, PROTOCOL.certkeys, PROTOCOL.u2f and PROTOCOL.krl of OpenSSH,
ssh-keygen(1), "ALLOWED SIGNERS". `ssh-keygen -Y verify` is the authority from outside; what it
accepts and we do not is what an approval must not rest on:

* a signature by a security key that nobody touched,
* an allowed-signers file with a line that it passes over, or that leaves open in which namespace,
  in which time zone or for whom a key counts,
* certificates with critical options, with no principals, or for hosts; RSA keys below 2,048 bits.

It never accepts what ssh-keygen refuses; tests/unit/test_sshsig.py holds both against each other.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import json
import re
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Callable, Dict, FrozenSet, List, Mapping, Optional, Sequence, Set, Tuple
from urllib.parse import urlsplit

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from recuse import strictjson
from recuse.errors import CryptoError, Fault, count_faults

MAX_SIGNATURE_BYTES = 16384  # armoured; a certificate with an RSA key of 8,192 bits is below
MAX_SIGNERS_BYTES = 1 << 20
MAX_REVOKED_BYTES = 4 << 20
MIN_RSA_BITS = 2048

USER_PRESENT, USER_VERIFIED = 0x01, 0x04  # flags of a security key, PROTOCOL.u2f
_ATTESTED, _EXTENDED = 0x40, 0x80

_BEGIN, _END = b"-----BEGIN SSH SIGNATURE-----", b"-----END SSH SIGNATURE-----"
_MAGIC = b"SSHSIG"
_KRL_MAGIC = b"SSHKRL\n\0"
_CERT = "-cert-v01@openssh.com"
_SK_ED25519, _SK_ECDSA = "sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com"
_WEBAUTHN = "webauthn-sk-ecdsa-sha2-nistp256@openssh.com"
_HASHES: Mapping[str, Callable[[bytes], Any]] = {"sha256": hashlib.sha256, "sha512": hashlib.sha512}
_CURVES: Mapping[str, Tuple[ec.EllipticCurve, hashes.HashAlgorithm]] = {
    "nistp256": (ec.SECP256R1(), hashes.SHA256()),
    "nistp384": (ec.SECP384R1(), hashes.SHA384()),
    "nistp521": (ec.SECP521R1(), hashes.SHA512()),
}
_RSA_HASHES: Mapping[str, hashes.HashAlgorithm] = {
    "rsa-sha2-256": hashes.SHA256(),
    "rsa-sha2-512": hashes.SHA512(),
}
KEY_TYPES = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-rsa",
    _SK_ED25519,
    _SK_ECDSA,
)
"""Of plain keys; a certificate has the type of the key in it."""


class SignatureRefused(CryptoError):
    """A signature does not count; `code` says why, for programs."""

    def __init__(self, code: str, message: str, hint: Optional[str] = None) -> None:
        super().__init__(message, hint)
        self.code = code


class SignersError(CryptoError):
    """A file of allowed signers or of revoked keys cannot be used; `faults` has every reason."""

    def __init__(self, message: str, faults: Sequence[Fault] = ()) -> None:
        super().__init__(message)
        self.faults = tuple(faults)


def _malformed(what: str) -> SignatureRefused:
    return SignatureRefused("malformed", f"signature is malformed: {what}")


# The wire encoding of SSH, RFC 4251 section 5


class _Reader:
    """Take a blob apart; whatever is cut, overlong or left over is an error."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._at = 0
        self._what = what

    @property
    def rest(self) -> int:
        return len(self._data) - self._at

    @property
    def at(self) -> int:
        return self._at

    def take(self, count: int) -> bytes:
        if count > self.rest:
            raise _malformed(f"{self._what} is cut")
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def string(self) -> bytes:
        return self.take(self.number(4))

    def text(self) -> str:
        raw = self.string()
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise _malformed(f"{self._what} has a text that is not utf-8") from None
        if not text.isprintable():
            raise _malformed(f"{self._what} has a text with characters that cannot be shown")
        return text

    def mpint(self) -> int:
        """Read a number that is not negative, in its one spelling."""
        raw = self.string()
        if raw and (raw[0] & 0x80 or (raw[0] == 0 and not (len(raw) > 1 and raw[1] & 0x80))):
            raise _malformed(f"{self._what} has a number that is negative or padded")
        return int.from_bytes(raw, "big")

    def end(self) -> None:
        if self.rest:
            raise _malformed(f"{self.rest} bytes are left over after {self._what}")


def _string(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


# Keys


@dataclass(frozen=True)
class Certificate:
    """What a certificate authority says of the key in it."""

    serial: int
    key_id: str
    principals: Tuple[str, ...]
    not_before: int  # unix seconds
    not_after: int
    ca: PublicKey = field(repr=False)


@dataclass(frozen=True)
class PublicKey:
    """A public key, plain; from a certificate, what that says besides."""

    type: str
    blob: bytes = field(repr=False)
    application: str = ""  # of a security key
    certificate: Optional[Certificate] = None

    @property
    def fingerprint(self) -> str:
        """Name the key as ssh-keygen -l does."""
        digest = base64.b64encode(hashlib.sha256(self.blob).digest()).decode().rstrip("=")
        return f"SHA256:{digest}"

    @property
    def material(self) -> bytes:
        """Give the bare key, whatever it is wrapped in: who holds one holds every equal one."""
        reader = _Reader(self.blob, "key")
        kind = reader.text()
        if kind == "ssh-rsa" or "ecdsa" in kind:
            reader.string()  # exponent; curve
        return reader.string()

    @property
    def is_security_key(self) -> bool:
        return self.type.startswith("sk-")


def parse_key(blob: bytes) -> PublicKey:
    """Read a public key or a user certificate in its binary form.

    Raises: SignatureRefused
    """
    try:
        return _parse_key(blob, certificates=True)
    except RecursionError:  # not reachable: the key of an authority is no certificate
        raise _malformed("key is nested") from None


def _parse_key(blob: bytes, certificates: bool) -> PublicKey:
    reader = _Reader(blob, "key")
    kind = reader.text()
    is_cert = kind.endswith(_CERT)
    if is_cert and not certificates:
        raise SignatureRefused("certificate", "certificate is signed by a certificate")
    plain = kind[: -len(_CERT)] if is_cert else kind
    if is_cert and plain.startswith("sk-"):
        plain += "@openssh.com"
    if plain not in KEY_TYPES:
        raise SignatureRefused("key-type", f"keys of type {kind[:64]!r} do not count")
    if is_cert:
        reader.string()  # nonce
    start = reader.at
    application = _read_key(reader, plain)
    body = blob[start : reader.at]
    key = PublicKey(plain, _string(plain.encode()) + body, application)
    if not is_cert:
        reader.end()
        return key
    return PublicKey(key.type, key.blob, application, _read_certificate(reader, blob))


def _read_key(reader: _Reader, kind: str) -> str:
    """Read what makes up a key of one type, checked; give the application of a security key."""
    if kind.endswith("ed25519@openssh.com") or kind == "ssh-ed25519":
        if len(reader.string()) != 32:
            raise _malformed("an Ed25519 key has 32 bytes")
    elif kind == "ssh-rsa":
        e, n = reader.mpint(), reader.mpint()
        if n.bit_length() < MIN_RSA_BITS:
            raise SignatureRefused(
                "weak-key", f"an RSA key of {n.bit_length()} bits is below {MIN_RSA_BITS}"
            )
        if e < 3 or e % 2 == 0 or e >= n:
            raise SignatureRefused("weak-key", f"an RSA key with exponent {e} does not count")
    else:
        curve = "nistp256" if kind == _SK_ECDSA else kind.rpartition("-")[2]
        if reader.text() != curve:
            raise _malformed("key is on another curve than its type says")
        point = reader.string()
        if point[:1] != b"\x04":  # another spelling of the same key
            raise _malformed("key has a point that is not written in full")
        try:
            ec.EllipticCurvePublicKey.from_encoded_point(_CURVES[curve][0], point)
        except ValueError:
            raise _malformed("key is no point of its curve") from None
    return reader.text() if kind.startswith("sk-") else ""


def _read_certificate(reader: _Reader, blob: bytes) -> Certificate:
    serial, kind = reader.number(8), reader.number(4)
    if kind != 1:
        raise SignatureRefused("certificate", "certificate is not a user's")
    key_id = reader.text()
    packed, principals = _Reader(reader.string(), "certificate's principals"), []
    while packed.rest:
        principals.append(packed.text())
    not_before, not_after = reader.number(8), reader.number(8)
    if reader.string():
        raise SignatureRefused("certificate", "certificate has critical options, which do not fit")
    extensions = _Reader(reader.string(), "certificate's extensions")
    while extensions.rest:  # they say what a login may do
        extensions.text()
        extensions.string()
    if reader.string():
        raise _malformed("the reserved field of its certificate is not empty")
    ca = _parse_key(reader.string(), certificates=False)
    signed = blob[: reader.at]
    signature = reader.string()
    reader.end()
    if not principals:
        raise SignatureRefused("certificate", "certificate has no principals, so it is anybody's")
    try:
        by_authority = _Signature.read(signature, ca, webauthn=False)
        by_authority.check(ca, signed)
        if ca.is_security_key and not by_authority.flags & USER_PRESENT:
            raise SignatureRefused("no-presence", f"nobody touched security key {ca.fingerprint}")
    except SignatureRefused as error:
        raise SignatureRefused(
            "certificate", f"certificate is not signed by its authority: {error.message}"
        ) from None
    return Certificate(serial, key_id, tuple(principals), not_before, not_after, ca)


# Signatures


@dataclass(frozen=True)
class _Signature:
    """The bare signature in a blob: what a key of one type says of some bytes."""

    type: str
    raw: bytes
    flags: int = 0
    counter: int = 0
    origin: str = ""
    client_data: bytes = b""
    extensions: bytes = b""

    @classmethod
    def read(cls, blob: bytes, key: PublicKey, webauthn: bool) -> _Signature:
        """Read a signature by a key; by a certificate's authority, without WebAuthn."""
        reader = _Reader(blob, "signature")
        kind = reader.text()
        fits = kind in _RSA_HASHES if key.type == "ssh-rsa" else kind == key.type
        if not fits and not (webauthn and kind == _WEBAUTHN and key.type == _SK_ECDSA):
            raise SignatureRefused(
                "key-type", f"a signature of type {kind[:64]!r} by a key of type {key.type}"
            )
        raw = reader.string()
        if not key.is_security_key:
            reader.end()
            return cls(kind, raw)
        flags, counter = reader.number(1), reader.number(4)
        origin, client_data, extensions = "", b"", b""
        if kind == _WEBAUTHN:
            origin, client_data, extensions = reader.text(), reader.string(), reader.string()
        reader.end()
        return cls(kind, raw, flags, counter, origin, client_data, extensions)

    def check(self, key: PublicKey, signed: bytes) -> None:
        """Check that the key signed these bytes. Raises: SignatureRefused"""
        reader = _Reader(key.blob, "key")
        reader.string()
        try:
            if key.is_security_key:
                signed = self._as_security_key(key, signed)
            if key.type == "ssh-rsa":
                e, n = reader.mpint(), reader.mpint()
                if len(self.raw) != (n.bit_length() + 7) // 8:
                    raise _malformed("an RSA signature has the length of its key")
                rsa.RSAPublicNumbers(e, n).public_key().verify(
                    self.raw, signed, padding.PKCS1v15(), _RSA_HASHES[self.type]
                )
            elif "ed25519" in key.type:
                if len(self.raw) != 64:
                    raise _malformed("an Ed25519 signature has 64 bytes")
                Ed25519PublicKey.from_public_bytes(reader.string()).verify(self.raw, signed)
            else:
                curve, digest = _CURVES[reader.text()]
                numbers = _Reader(self.raw, "ECDSA signature")
                r, s = numbers.mpint(), numbers.mpint()
                numbers.end()
                ec.EllipticCurvePublicKey.from_encoded_point(curve, reader.string()).verify(
                    encode_dss_signature(r, s), signed, ec.ECDSA(digest)
                )
        except (InvalidSignature, ValueError):
            raise SignatureRefused(
                "altered", f"signature by {key.fingerprint} is not over these bytes"
            ) from None

    def _as_security_key(self, key: PublicKey, signed: bytes) -> bytes:
        """Give what a security key really signs, PROTOCOL.u2f."""
        head = hashlib.sha256(key.application.encode()).digest()
        head += bytes([self.flags]) + self.counter.to_bytes(4, "big")
        if self.type != _WEBAUTHN:
            return head + hashlib.sha256(signed).digest()
        if self.flags & _ATTESTED or bool(self.flags & _EXTENDED) != bool(self.extensions):
            raise _malformed("flags and extensions of WebAuthn do not agree")
        if not self.origin.isprintable() or any(mark in self.origin for mark in '"\\'):
            raise _malformed("its origin is no address of a page")
        challenge = base64.urlsafe_b64encode(signed).decode().rstrip("=")
        # A browser writes these three first, in this order (CollectedClientData, WebAuthn 5.8.1).
        wanted = json.dumps(
            {"type": "webauthn.get", "challenge": challenge, "origin": self.origin},
            separators=(",", ":"), ensure_ascii=False,
        )[:-1].encode()  # fmt: skip
        if not self.client_data.startswith((wanted + b",", wanted + b"}")):
            raise SignatureRefused("altered", "WebAuthn client data is not for these bytes")
        self._check_page(key.application)
        return head + self.extensions + hashlib.sha256(self.client_data).digest()

    def _check_page(self, application: str) -> None:
        """Check that the page may use that key at all, and was not in a frame of another's."""
        try:
            told = strictjson.load(self.client_data)
            host = urlsplit(self.origin).hostname or ""
        except ValueError:
            raise _malformed("WebAuthn client data is not JSON, or of no page") from None
        if told.get("crossOrigin", False) is not False:
            raise SignatureRefused("origin", "signature was asked for in a frame of another page")
        if not application or (host != application and not host.endswith(f".{application}")):
            raise SignatureRefused(
                "origin", f"page {self.origin!r} is not of {application!r}, whose key it is"
            )


@dataclass(frozen=True)
class SshSignature:
    """An armoured signature taken apart; who made it, and over what, is not checked yet."""

    key: PublicKey
    namespace: str
    hash: str
    _signature: _Signature = field(repr=False)

    @classmethod
    def parse(cls, armoured: bytes) -> SshSignature:
        """Read what `ssh-keygen -Y sign` writes.

        Raises: SignatureRefused
        """
        reader = _Reader(_disarm(armoured), "signature")
        if reader.take(len(_MAGIC)) != _MAGIC or reader.number(4) != 1:
            raise _malformed("it is no SSHSIG of version 1")
        key = parse_key(reader.string())
        namespace = reader.text()
        if reader.string():
            raise _malformed("its reserved field is not empty")
        digest = reader.text()
        if digest not in _HASHES:
            raise SignatureRefused("hash", f"signature uses hash {digest[:32]!r}")
        signature = _Signature.read(reader.string(), key, webauthn=True)
        reader.end()
        if not namespace:
            raise _malformed("it has no namespace")
        return cls(key, namespace, digest, signature)

    @property
    def flags(self) -> Optional[int]:
        """Give the flags of a security key, None for other keys."""
        return self._signature.flags if self.key.is_security_key else None

    @property
    def counter(self) -> Optional[int]:
        """Give the counter of a security key, None for other keys."""
        return self._signature.counter if self.key.is_security_key else None

    @property
    def origin(self) -> Optional[str]:
        """Give the web page that asked for it, if one did."""
        return self._signature.origin if self._signature.type == _WEBAUTHN else None

    def check(self, message: bytes) -> None:
        """Check that the key signed exactly this message. Raises: SignatureRefused"""
        signed = b"".join(
            (
                _MAGIC,
                _string(self.namespace.encode()),
                _string(b""),
                _string(self.hash.encode()),
                _string(_HASHES[self.hash](message).digest()),
            )
        )
        self._signature.check(self.key, signed)


def _disarm(armoured: bytes) -> bytes:
    if len(armoured) > MAX_SIGNATURE_BYTES:
        raise _malformed(f"{len(armoured)} bytes are too many")
    lines = armoured.replace(b"\r\n", b"\n").split(b"\n")
    while lines and not lines[-1]:
        lines.pop()
    if len(lines) < 3 or lines[0] != _BEGIN or lines[-1] != _END:
        raise _malformed("it does not stand between its BEGIN and END lines")
    return _unbase64(b"".join(lines[1:-1]), "signature")


def _unbase64(text: bytes, what: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise _malformed(f"{what} is not base64") from None
    if base64.b64encode(data) != text:
        raise _malformed(f"{what} is not base64 in its one spelling")
    return data


# Allowed signers


@dataclass(frozen=True)
class _Line:
    """One line of an allowed-signers file."""

    number: int
    patterns: Tuple[str, ...]
    is_authority: bool
    namespaces: FrozenSet[str]
    valid_after: Optional[int]  # unix seconds
    valid_before: Optional[int]
    key: PublicKey


@dataclass(frozen=True)
class AllowedSigners:
    """Whose keys count, in which namespace and when."""

    path: str
    digest: str
    _lines: Tuple[_Line, ...] = field(repr=False)

    @classmethod
    def parse(cls, source: bytes, path: str) -> AllowedSigners:
        """Read an allowed-signers file; one bad line makes all of it useless.

        Raises: SignersError with every fault
        """
        if len(source) > MAX_SIGNERS_BYTES:
            raise SignersError(f"{path}: {len(source)} bytes are too many")
        faults: List[Fault] = []
        if source and not source.endswith(b"\n"):
            faults.append(Fault(path, None, "its last line does not end: is all of it there?"))
        lines: List[_Line] = []
        owners: Dict[bytes, Tuple[str, ...]] = {}
        for number, raw in enumerate(source.split(b"\n"), 1):
            try:
                text = raw.decode("utf-8").rstrip("\r")
                if not all(char.isprintable() or char == "\t" for char in text):
                    raise ValueError("it has characters that cannot be shown")
                if not text.strip() or text.lstrip().startswith("#"):
                    continue
                line = _parse_line(number, text)
                if not line.is_authority:
                    before = owners.setdefault(line.key.material, line.patterns)
                    if before != line.patterns:
                        raise ValueError(f"key {line.key.fingerprint} is also that of {before[0]}")
            except UnicodeDecodeError:
                faults.append(Fault(path, number, "not utf-8"))
            except SignatureRefused as error:
                faults.append(Fault(path, number, error.message))
            except ValueError as error:
                faults.append(Fault(path, number, str(error)))
            else:
                lines.append(line)
        if faults:
            count = count_faults(len(faults))
            raise SignersError(f"{count} in {path}, so nobody in it counts", faults)
        return cls(path, hashlib.sha256(source).hexdigest(), tuple(lines))

    @property
    def principals(self) -> FrozenSet[str]:
        """Name everybody who has a plain key in it."""
        return frozenset(
            name for line in self._lines if not line.is_authority for name in line.patterns
        )

    def holders(self, key: PublicKey) -> FrozenSet[str]:
        """Name whose plain key that is, in whatever namespace and at whatever time.

        A certificate may give it another name; it does not make another person of its holder.
        """
        return frozenset(
            name
            for line in self._lines
            if not line.is_authority and line.key.material == key.material
            for name in line.patterns
        )

    def find(self, key: PublicKey, namespace: str, at: datetime) -> Tuple[str, ...]:
        """Say in whose name a key signs.

        Raises: SignatureRefused that names what comes nearest
        """
        moment = int(at.timestamp())
        near: List[SignatureRefused] = []
        found: Set[str] = set()
        for line in self._lines:
            if line.is_authority:
                if key.certificate is None or key.certificate.ca.blob != line.key.blob:
                    continue
            elif key.certificate is not None or line.key.blob != key.blob:
                continue
            try:
                found.update(self._names(line, key, namespace, moment))
            except SignatureRefused as error:
                near.append(error)
        if found:
            return tuple(sorted(found))
        if near:
            raise near[0]
        raise SignatureRefused(
            "unknown-signer", f"key {key.fingerprint} is not in {self.path}"
        )

    def _names(
        self, line: _Line, key: PublicKey, namespace: str, moment: int
    ) -> Tuple[str, ...]:
        where = f"{self.path}:{line.number}"
        if namespace not in line.namespaces:
            raise SignatureRefused(
                "namespace", f"{where}: that key does not count in namespace {namespace}"
            )
        if line.valid_after is not None and moment < line.valid_after:
            raise SignatureRefused("not-yet-valid", f"{where}: that key does not count yet")
        if line.valid_before is not None and moment >= line.valid_before:
            raise SignatureRefused("expired", f"{where}: that key does not count any more")
        if key.certificate is None:
            return line.patterns
        if moment < key.certificate.not_before:
            raise SignatureRefused("not-yet-valid", "certificate is not valid yet")
        if moment >= key.certificate.not_after:
            raise SignatureRefused("expired", "certificate has expired")
        names = tuple(
            name for name in key.certificate.principals if _matches(name, line.patterns)
        )
        if not names:
            raise SignatureRefused(
                "unknown-signer", f"{where}: no principal of the certificate is meant there"
            )
        return names


_PRINCIPAL = re.compile(r"[!-~\u00a0-\U0010ffff]{1,255}")
_TIME = re.compile(r"(\d{4})(\d\d)(\d\d)(?:(\d\d)(\d\d)(\d\d)?)?Z", re.ASCII)
_OPTION = re.compile(r'([A-Za-z-]+)(?:="([^"\\]*)")?(,|[ \t]+|\Z)')


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Match as ssh_config(5), PATTERNS: one that is negated decides."""
    hit = False
    for pattern in patterns:
        negated = pattern.startswith("!")
        # Only * and ? mean something there.
        plain = pattern.lstrip("!").replace("[", "[[]")
        if fnmatch.fnmatchcase(name, plain):
            if negated:
                return False
            hit = True
    return hit


def _parse_line(number: int, text: str) -> _Line:
    """Read one line of an allowed-signers file. Raises: ValueError, SignatureRefused"""
    text = text.strip()
    names, _, rest = text.partition(" ")
    if '"' in names:
        raise ValueError("principals in quotes are not read")
    patterns = tuple(names.split(","))
    for name in patterns:
        if not _PRINCIPAL.fullmatch(name) or name == "!":
            raise ValueError(f"{name!r} is no name of a principal")
    options, rest = _parse_options(rest.strip())
    words = rest.split()
    if len(words) < 2:
        raise ValueError("no key, which is its type and base64")
    blob = _unbase64(words[1].encode(), "key")
    key = parse_key(blob)
    if key.certificate is not None:
        raise ValueError("a certificate stands there: name its authority, with cert-authority")
    if key.type != words[0]:
        raise ValueError(f"key is of type {key.type}, not {words[0]}")
    is_authority = "cert-authority" in options
    if "namespaces" not in options:
        raise ValueError("no namespaces=, so any signature by that key would count")
    namespaces = frozenset((options["namespaces"] or "").split(","))
    for name in namespaces:
        if not name or any(mark in name for mark in "*?!") or name != name.strip():
            raise ValueError(f"namespace {name!r} is no plain name")
    if not is_authority:
        if len(patterns) > 1:
            raise ValueError("a key of several principals: it is not known who signs with it")
        if any(mark in patterns[0] for mark in "*?!"):
            raise ValueError(f"{patterns[0]!r} is a pattern: it is not known who signs")
    times = {
        name: _parse_time(options[name] or "") if name in options else None
        for name in ("valid-after", "valid-before")
    }
    after, before = times["valid-after"], times["valid-before"]
    if after is not None and before is not None and after >= before:
        raise ValueError("the key counts only after it does not count any more")
    return _Line(
        number, patterns, is_authority, namespaces, after, before, key
    )


def _parse_options(text: str) -> Tuple[Dict[str, Optional[str]], str]:
    """Read options, which stand before the type of the key; give them and the rest."""
    options: Dict[str, Optional[str]] = {}
    if text.split(None, 1)[:1] and text.split(None, 1)[0] in KEY_TYPES:
        return options, text
    at = 0
    while True:
        match = _OPTION.match(text, at)
        if match is None:
            raise ValueError("neither an option nor a type of key follows the principals")
        name, value, after = match.groups()
        name = name.lower()
        if name not in ("cert-authority", "namespaces", "valid-after", "valid-before"):
            raise ValueError(f"unknown option or type of key {name!r}")
        if name in options:
            raise ValueError(f"option {name} twice")
        if (value is None) != (name == "cert-authority"):
            raise ValueError(f'option {name} is written {name}="..."' if value is None else
                             f"option {name} takes no value")  # fmt: skip
        options[name] = value
        at = match.end()
        if after != ",":
            return options, text[at:]


def _parse_time(text: str) -> int:
    match = _TIME.fullmatch(text)
    if match is None:
        hint = "YYYYMMDDZ or YYYYMMDDHHMM[SS]Z"
        raise ValueError(f"time {text!r} is not {hint}: without Z it would be another in each zone")
    parts = [int(part or 0) for part in match.groups()]
    try:
        moment = datetime(*parts, tzinfo=timezone.utc)  # type: ignore[misc, arg-type]
    except ValueError:
        raise ValueError(f"time {text!r} does not exist") from None
    return int(moment.timestamp())


# Revoked keys


@dataclass(frozen=True)
class _Revoked:
    """Certificates of one authority that are revoked; `ca` empty: of any."""

    ca: bytes
    serials: Tuple[Tuple[int, int], ...]  # from, to
    bitmaps: Tuple[Tuple[int, int], ...]  # offset, bits
    key_ids: FrozenSet[str]

    def has(self, certificate: Certificate) -> bool:
        if self.ca and self.ca != certificate.ca.blob:
            return False
        if certificate.key_id in self.key_ids:
            return True
        if any(low <= certificate.serial <= high for low, high in self.serials):
            return True
        return any(
            certificate.serial >= offset and bits >> (certificate.serial - offset) & 1
            for offset, bits in self.bitmaps
        )


@dataclass(frozen=True)
class RevokedKeys:
    """Keys and certificates that do not count any more."""

    digest: str
    keys: FrozenSet[bytes] = field(default=frozenset(), repr=False)
    sha1: FrozenSet[bytes] = field(default=frozenset(), repr=False)
    sha256: FrozenSet[bytes] = field(default=frozenset(), repr=False)
    certificates: Tuple[_Revoked, ...] = field(default=(), repr=False)
    version: Optional[int] = None  # of a KRL
    generated: Optional[int] = None  # unix seconds, of a KRL

    @classmethod
    def parse(cls, source: bytes, path: str) -> RevokedKeys:
        """Read a list of public keys, one a line, or a KRL (PROTOCOL.krl).

        Raises: SignersError; then nothing is known to be good
        """
        if len(source) > MAX_REVOKED_BYTES:
            raise SignersError(f"{path}: {len(source)} bytes are too many")
        if source.startswith(_KRL_MAGIC):
            try:
                return _parse_krl(source)
            except (SignatureRefused, ValueError) as error:
                told = getattr(error, "message", str(error))
                raise SignersError(f"{path}: not a usable KRL: {told}") from None
        keys: Set[bytes] = set()
        faults: List[Fault] = []
        for number, raw in enumerate(source.split(b"\n"), 1):
            words = raw.split()
            if not words or words[0].startswith(b"#"):
                continue
            try:
                if len(words) < 2 or words[0].decode("ascii") not in KEY_TYPES:
                    raise ValueError("not a public key")
                keys.add(_revocable(_unbase64(words[1], "key"), words[0].decode("ascii")))
            except SignatureRefused as error:
                faults.append(Fault(path, number, error.message))
            except ValueError:
                faults.append(Fault(path, number, "not a public key"))
        if faults:
            count = count_faults(len(faults))
            raise SignersError(f"{count} in {path}, so no key is known to be good", faults)
        return cls(hashlib.sha256(source).hexdigest(), frozenset(keys))

    def has(self, key: PublicKey) -> bool:
        """Say whether a key, the certificate it came in, or that one's authority is revoked."""
        certificate = key.certificate
        if certificate is not None:
            if self.has(certificate.ca) or any(one.has(certificate) for one in self.certificates):
                return True
        return (
            key.blob in self.keys
            or hashlib.sha1(key.blob, usedforsecurity=False).digest() in self.sha1
            or hashlib.sha256(key.blob).digest() in self.sha256
        )


def _revocable(blob: bytes, kind: str) -> bytes:
    """Check the form of a key to be revoked; a weak one is as revocable as any."""
    if _Reader(blob, "key").text() != kind:
        raise ValueError("another type than it says")
    return blob


_SHA1, _SHA256 = 3, 5  # sections of a KRL
_SUM_BYTES = {_SHA1: 20, _SHA256: 32}


def _parse_krl(source: bytes) -> RevokedKeys:
    reader = _Reader(source[len(_KRL_MAGIC) :], "list")
    if reader.number(4) != 1:
        raise ValueError("its version is not 1")
    version, generated = reader.number(8), reader.number(8)
    if reader.number(8):
        raise ValueError("it has flags, and none is defined")
    reader.string()  # reserved
    reader.string()  # comment
    keys: Set[bytes] = set()
    sums: Dict[int, Set[bytes]] = {_SHA1: set(), _SHA256: set()}
    certificates: List[_Revoked] = []
    while reader.rest:
        kind, section = reader.number(1), _Reader(reader.string(), "section")
        if kind == 1:
            certificates.append(_parse_revoked(section))
        elif kind == 2:
            while section.rest:
                keys.add(section.string())
        elif kind in sums:
            while section.rest:
                sums[kind].add(section.string())
            if any(len(one) != _SUM_BYTES[kind] for one in sums[kind]):
                raise ValueError("it has a fingerprint of another length than its kind")
        elif kind == 255:
            _skip_extension(section)
        else:
            raise ValueError(f"it has a section of type {kind}")
    return RevokedKeys(
        hashlib.sha256(source).hexdigest(), frozenset(keys), frozenset(sums[_SHA1]),
        frozenset(sums[_SHA256]), tuple(certificates), version, generated,
    )  # fmt: skip


def _parse_revoked(section: _Reader) -> _Revoked:
    ca = section.string()
    section.string()  # reserved
    serials: List[Tuple[int, int]] = []
    bitmaps: List[Tuple[int, int]] = []
    key_ids: Set[str] = set()
    while section.rest:
        kind, part = section.number(1), _Reader(section.string(), "section")
        if kind == 0x20:
            while part.rest:
                serial = part.number(8)
                serials.append((serial, serial))
        elif kind == 0x21:
            low, high = part.number(8), part.number(8)
            if low > high:
                raise ValueError("it has a range of serials that ends before it begins")
            serials.append((low, high))
            part.end()
        elif kind == 0x22:
            bitmaps.append((part.number(8), part.mpint()))
            part.end()
        elif kind == 0x23:
            while part.rest:
                key_ids.add(part.text())
        elif kind == 0x39:
            _skip_extension(part)
        else:
            raise ValueError(f"it has certificates in a section of type {kind:#x}")
    return _Revoked(ca, tuple(serials), tuple(bitmaps), frozenset(key_ids))


def _skip_extension(part: _Reader) -> None:
    name, critical = part.text(), part.number(1)
    part.string()
    part.end()
    if critical:
        raise ValueError(f"it has the critical extension {name!r}")


# All of it together


@dataclass(frozen=True)
class Signed:
    """Who signed, and how."""

    principals: Tuple[str, ...]  # sorted; several only by a certificate of several
    key: PublicKey
    namespace: str
    hash: str
    flags: Optional[int]  # of a security key
    counter: Optional[int]
    origin: Optional[str]

    @property
    def user_present(self) -> Optional[bool]:
        """Say whether somebody touched the security key; None for other keys."""
        return None if self.flags is None else bool(self.flags & USER_PRESENT)

    @property
    def user_verified(self) -> Optional[bool]:
        """Say whether a PIN or finger was given; None for other keys."""
        return None if self.flags is None else bool(self.flags & USER_VERIFIED)


def verify(
    message: bytes,
    armoured: bytes,
    signers: AllowedSigners,
    namespace: str,
    at: datetime,
    revoked: Optional[RevokedKeys] = None,
    origins: Sequence[str] = (),
) -> Signed:
    """Say who signed a message in a namespace, with a key that counts at a time.

    `origins` are the web pages whose WebAuthn signatures count, none by default.

    Raises: SignatureRefused, whose code is one of malformed, key-type, weak-key, hash, certificate,
    namespace, altered, origin, no-presence, revoked, unknown-signer, not-yet-valid, expired
    """
    signature = SshSignature.parse(armoured)
    if signature.namespace != namespace:
        raise SignatureRefused(
            "namespace",
            f"signature is for namespace {signature.namespace!r}, not {namespace!r}",
            f"sign with: ssh-keygen -Y sign -n {namespace}",
        )
    signature.check(message)
    if signature.origin is not None and signature.origin not in origins:
        raise SignatureRefused(
            "origin",
            f"signature was made in a browser, on {signature.origin!r}, which is not listed",
            "list the page as one of origins in approval.d, or sign with: recuse approve",
        )
    if signature.flags is not None and not signature.flags & USER_PRESENT:
        raise SignatureRefused(
            "no-presence", f"nobody touched security key {signature.key.fingerprint}"
        )
    if revoked is not None and revoked.has(signature.key):
        raise SignatureRefused("revoked", f"key {signature.key.fingerprint} is revoked")
    return Signed(
        signers.find(signature.key, namespace, at),
        signature.key,
        signature.namespace,
        signature.hash,
        signature.flags,
        signature.counter,
        signature.origin,
    )
