"""Signatures as ssh-keygen and security keys make them, for tests.

ssh-keygen itself makes those of software keys and of certificates; the security key is software,
too, since PROTOCOL.u2f says all that one does.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

NAMESPACE = "recuse-grant@example.org"
NOT_FRAMED = '"crossOrigin":false'


def run(*command: str, stdin: bytes = b"", cwd: Optional[Path] = None) -> bytes:
    done = subprocess.run(command, input=stdin, capture_output=True, cwd=cwd)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def make_key(place: Path, name: str, kind: str = "ed25519", *options: str) -> Path:
    """Make a key pair; give the path of the private half."""
    path = place / name
    run("ssh-keygen", "-q", "-t", kind, "-N", "", "-C", name, "-f", str(path), *options)
    return path


def public(path: Path) -> str:
    """Give type and base64 of a key's public half."""
    return " ".join(path.with_name(path.name + ".pub").read_text().split()[:2])


def certify(ca: Path, key: Path, *options: str, principals: str = "alice@example.org") -> Path:
    """Have a key certified; give the path of the certificate."""
    names = ("-n", principals) if principals else ()
    run("ssh-keygen", "-q", "-s", str(ca), "-I", f"id-{key.name}", *names, *options, f"{key}.pub")
    return key.with_name(f"{key.name}-cert.pub")


def sign(key: Path, message: bytes, namespace: str = NAMESPACE, *options: str) -> bytes:
    """Sign as an approver does by hand."""
    return run(
        "ssh-keygen", "-q", "-Y", "sign", "-f", str(key), "-n", namespace, *options, stdin=message
    )


def keygen_accepts(
    place: Path,
    message: bytes,
    signature: bytes,
    signers: str,
    principal: str,
    namespace: str = NAMESPACE,
    at: str = "20260101120000Z",
    revoked: Optional[Path] = None,
) -> bool:
    """Ask ssh-keygen -Y verify."""
    (place / "check.signers").write_text(signers)
    (place / "check.sig").write_bytes(signature)
    command = ["ssh-keygen", "-Y", "verify", "-f", str(place / "check.signers"), "-I", principal]
    command += ["-n", namespace, "-s", str(place / "check.sig"), f"-Overify-time={at}"]
    if revoked is not None:
        command += ["-r", str(revoked)]
    return subprocess.run(command, input=message, capture_output=True).returncode == 0


def string(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def mpint(number: int) -> bytes:
    raw = number.to_bytes(number.bit_length() // 8 + 1, "big")
    return string(raw if number else b"")


def armour(blob: bytes) -> bytes:
    text = base64.b64encode(blob).decode()
    lines = [text[at : at + 70] for at in range(0, len(text), 70)]
    return "\n".join(
        ["-----BEGIN SSH SIGNATURE-----", *lines, "-----END SSH SIGNATURE-----", ""]
    ).encode()


def disarm(armoured: bytes) -> bytes:
    return base64.b64decode(b"".join(armoured.split(b"\n")[1:-2]))


@dataclass(frozen=True)
class SecurityKey:
    """A FIDO2 key in software; `kind` is ed25519 or ecdsa."""

    kind: str
    seed: int = 1
    application: str = "ssh:"

    @property
    def type(self) -> str:
        if self.kind == "ed25519":
            return "sk-ssh-ed25519@openssh.com"
        return "sk-ecdsa-sha2-nistp256@openssh.com"

    @property
    def blob(self) -> bytes:
        head = string(self.type.encode())
        if self.kind == "ed25519":
            raw = self._ed25519.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
            return head + string(raw) + string(self.application.encode())
        point = self._ecdsa.public_key().public_bytes(
            Encoding.X962, PublicFormat.UncompressedPoint
        )
        return head + string(b"nistp256") + string(point) + string(self.application.encode())

    @property
    def public(self) -> str:
        return f"{self.type} {base64.b64encode(self.blob).decode()}"

    @property
    def _ed25519(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(bytes([self.seed]) * 32)

    @property
    def _ecdsa(self) -> ec.EllipticCurvePrivateKey:
        return ec.derive_private_key(self.seed + 1000, ec.SECP256R1())

    def _sign(self, data: bytes) -> bytes:
        if self.kind == "ed25519":
            return self._ed25519.sign(data)
        r, s = decode_dss_signature(self._ecdsa.sign(data, ec.ECDSA(hashes.SHA256())))
        return mpint(r) + mpint(s)

    def sign_raw(
        self,
        data: bytes,
        flags: int = 0x01,
        counter: int = 7,
        origin: Optional[str] = None,
        client_rest: str = NOT_FRAMED,
    ) -> bytes:
        """Sign bytes as they are."""
        moment = bytes([flags]) + counter.to_bytes(4, "big")
        head = hashlib.sha256(self.application.encode()).digest() + moment
        if origin is None:
            raw = self._sign(head + hashlib.sha256(data).digest())
            return string(self.type.encode()) + string(raw) + moment
        challenge = base64.urlsafe_b64encode(data).decode().rstrip("=")
        first = json.dumps(
            {"type": "webauthn.get", "challenge": challenge, "origin": origin},
            separators=(",", ":"),
        )  # fmt: skip
        client = f"{first[:-1]},{client_rest}}}".encode()
        raw = self._sign(head + hashlib.sha256(client).digest())
        signature = string(b"webauthn-sk-ecdsa-sha2-nistp256@openssh.com") + string(raw) + moment
        return signature + string(origin.encode()) + string(client) + string(b"")

    def sign(
        self,
        message: bytes,
        namespace: str = NAMESPACE,
        flags: int = 0x01,
        counter: int = 7,
        origin: Optional[str] = None,
        hash_name: str = "sha512",
        client_rest: str = NOT_FRAMED,
    ) -> bytes:
        """Sign; with an origin, as a browser has a security key sign, ending with client_rest."""
        digest = hashlib.new(hash_name, message).digest()
        parts = (namespace.encode(), b"", hash_name.encode())
        signed = b"SSHSIG" + b"".join(map(string, (*parts, digest)))
        signature = self.sign_raw(signed, flags, counter, origin, client_rest)
        return armour(
            b"SSHSIG\0\0\0\1" + string(self.blob) + b"".join(map(string, (*parts, signature)))
        )


def hand_certificate(ca: SecurityKey, public: str, flags: int) -> bytes:
    """Certify an Ed25519 key for alice with a security key as authority."""
    body = base64.b64decode(public.split()[1])[len(string(b"ssh-ed25519")) :]
    blob = string(b"ssh-ed25519-cert-v01@openssh.com") + string(b"nonce") + body
    blob += (9).to_bytes(8, "big") + (1).to_bytes(4, "big") + string(b"by hand")
    blob += string(string(b"alice@example.org")) + bytes(8) + b"\xff" * 8
    blob += string(b"") * 3 + string(ca.blob)
    return blob + string(ca.sign_raw(blob, flags))


def signers_line(name: str, key: str, *options: str, namespace: str = NAMESPACE) -> str:
    """Write a line of an allowed-signers file; `key` is type and base64."""
    return name + " " + ",".join([*options, f'namespaces="{namespace}"']) + f" {key}\n"
