"""sshsig.py against ssh-keygen itself: never laxer, and each refusal for its own reason."""

from __future__ import annotations

import base64
import random
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Dict, List, Tuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sshkeys
from recuse import sshsig
from recuse.sshsig import AllowedSigners, RevokedKeys, SignatureRefused, SignersError
from sshkeys import NAMESPACE, SecurityKey, signers_line

NOW = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
MESSAGE = b'{"v":1,"id":"g-1"}\n'
ALICE = "alice@example.org"
ROOT = Path(__file__).resolve().parents[2]
VECTORS = sorted((ROOT / "tests/vectors/sshsig").glob("*.txt"))
SOFTWARE = (("ed25519",), ("ecdsa", "-b", "256"), ("ecdsa", "-b", "384"), ("ecdsa", "-b", "521"),
            ("rsa", "-b", "2048"))  # fmt: skip


@dataclass
class Keys:
    """Key pairs of software, made once, and a place to work in."""

    place: Path
    made: Dict[str, Path] = field(default_factory=dict)

    def get(self, name: str, kind: str = "ed25519", *options: str) -> Path:
        if name not in self.made:
            self.made[name] = sshkeys.make_key(self.place, name, kind, *options)
        return self.made[name]

    def cert(self, name: str, *options: str, principals: str = ALICE) -> Path:
        key = self.get(f"{name}-{abs(hash((options, principals)))}")
        return sshkeys.certify(self.get("ca"), key, "-V", "20250101:20300101", *options,
                               principals=principals)  # fmt: skip


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys"))


def check(
    signature: bytes, signers: str, message: bytes = MESSAGE, revoked: bytes = b"", **more: object
) -> sshsig.Signed:
    return sshsig.verify(
        message, signature, AllowedSigners.parse(signers.encode(), "approvers"), NAMESPACE, NOW,
        RevokedKeys.parse(revoked, "revoked"), **more,  # type: ignore[arg-type]
    )  # fmt: skip


def refused(signature: bytes, signers: str, message: bytes = MESSAGE, **more: object) -> str:
    with pytest.raises(SignatureRefused) as caught:
        check(signature, signers, message, **more)  # type: ignore[arg-type]
    assert caught.value.message == caught.value.message.strip()
    return caught.value.code


# What holds


@pytest.mark.parametrize("kind", SOFTWARE, ids="-".join)
@pytest.mark.parametrize("digest", ("sha256", "sha512"))
def test_verify_accepts_what_ssh_keygen_signs(keys: Keys, kind: Tuple[str], digest: str) -> None:
    key = keys.get("-".join(kind), *kind)
    signature = sshkeys.sign(key, MESSAGE, NAMESPACE, "-O", f"hashalg={digest}")
    signers = signers_line(ALICE, sshkeys.public(key))
    found = check(signature, signers)
    assert (found.principals, found.hash, found.user_present) == ((ALICE,), digest, None)
    listed = sshkeys.run("ssh-keygen", "-l", "-f", f"{key}.pub").decode().split()
    assert found.key.fingerprint == listed[1]
    assert sshkeys.keygen_accepts(keys.place, MESSAGE, signature, signers, ALICE)


@pytest.mark.parametrize("kind", ("ed25519", "ecdsa"))
@pytest.mark.parametrize("flags", (0x01, 0x05))
def test_verify_accepts_security_keys(keys: Keys, kind: str, flags: int) -> None:
    key = SecurityKey(kind)
    signature, signers = key.sign(MESSAGE, flags=flags), signers_line(ALICE, key.public)
    found = check(signature, signers)
    assert (found.user_present, found.user_verified, found.counter) == (True, flags == 5, 7)
    assert sshkeys.keygen_accepts(keys.place, MESSAGE, signature, signers, ALICE)


def test_verify_accepts_webauthn_of_a_page_that_counts(keys: Keys) -> None:
    key, page = SecurityKey("ecdsa", application="example.org"), "https://approve.example.org"
    signature, signers = key.sign(MESSAGE, origin=page), signers_line(ALICE, key.public)
    assert check(signature, signers, origins=[page]).origin == page
    assert refused(signature, signers) == "origin"
    framed = key.sign(MESSAGE, origin=page, client_rest='"crossOrigin":true')
    assert refused(framed, signers, origins=[page]) == "origin"
    assert sshkeys.keygen_accepts(keys.place, MESSAGE, signature, signers, ALICE)


@pytest.mark.parametrize(
    "rest",
    ('"crossOrigin":true,"crossOrigin":false', '"more":NaN', '"more":', '"more":' + "[" * 9000),
    ids=("twice", "no-number", "cut", "deep"),
)
def test_webauthn_that_two_readers_may_read_differently_is_refused(rest: str) -> None:
    key, page = SecurityKey("ecdsa", application="example.org"), "https://approve.example.org"
    signature = key.sign(MESSAGE, origin=page, client_rest=rest)
    assert refused(signature, signers_line(ALICE, key.public), origins=[page]) == "malformed"


@pytest.mark.parametrize("pattern", (ALICE, "*@example.org", "al?ce@*", "*,!bob@*"))
def test_verify_accepts_certificates(keys: Keys, pattern: str) -> None:
    cert = keys.cert("held")
    signature = sshkeys.sign(cert, MESSAGE)
    signers = signers_line(pattern, sshkeys.public(keys.get("ca")), "cert-authority")
    found = check(signature, signers)
    assert found.principals == (ALICE,)
    assert found.key.certificate is not None and found.key.type == "ssh-ed25519"
    assert sshkeys.keygen_accepts(keys.place, MESSAGE, signature, signers, ALICE)


def test_verify_names_every_principal_of_a_certificate(keys: Keys) -> None:
    cert = keys.cert("two", principals=f"{ALICE},bob@example.org,eve@elsewhere")
    signers = signers_line("*@example.org", sshkeys.public(keys.get("ca")), "cert-authority")
    assert check(sshkeys.sign(cert, MESSAGE), signers).principals == (ALICE, "bob@example.org")


@pytest.mark.parametrize("name", ("example.com", "xample.org", "ssh:", "", "org.example"))
def test_webauthn_of_a_key_of_another_site_is_refused(name: str) -> None:
    key, page = SecurityKey("ecdsa", application=name), "https://approve.example.org"
    signature = key.sign(MESSAGE, origin=page)
    assert refused(signature, signers_line(ALICE, key.public), origins=[page]) == "origin"


@pytest.mark.parametrize("flags", (0x00, 0x01))
def test_an_authority_on_a_security_key_has_to_be_touched(keys: Keys, flags: int) -> None:
    ca, key = SecurityKey("ed25519"), keys.get("mine")
    blob = sshkeys.hand_certificate(ca, sshkeys.public(key), flags)
    cert = keys.place / f"mine-{flags}-cert.pub"
    text = base64.b64encode(blob).decode()
    cert.write_text(f"ssh-ed25519-cert-v01@openssh.com {text}\n")
    (keys.place / f"mine-{flags}").write_bytes(key.read_bytes())
    (keys.place / f"mine-{flags}").chmod(0o600)
    signature = sshkeys.sign(cert, MESSAGE)
    signers = signers_line(ALICE, ca.public, "cert-authority")
    assert sshkeys.keygen_accepts(keys.place, MESSAGE, signature, signers, ALICE)
    if flags:
        assert check(signature, signers).principals == (ALICE,)
    else:
        assert refused(signature, signers) == "certificate"


# What does not, and why


def test_a_key_has_one_spelling(keys: Keys) -> None:
    """A point may be written short: the same key would pass for two."""
    blob = base64.b64decode(sshkeys.public(keys.get("p256", "ecdsa", "-b", "256")).split()[1])
    head, point = blob[: -65 - 4], blob[-65:]
    assert sshsig.parse_key(blob).material == point
    short = bytes([2 + point[-1] % 2]) + point[1:33]
    with pytest.raises(SignatureRefused, match="not written in full"):
        sshsig.parse_key(head + sshkeys.string(short))


def test_holders_of_a_key_whatever_it_is_wrapped_in(keys: Keys) -> None:
    key = keys.get("mine")
    cert = sshkeys.certify(keys.get("ca"), key, principals="carol@example.org")
    line = signers_line(ALICE, sshkeys.public(key), namespace="git")
    signers = AllowedSigners.parse(line.encode(), "approvers")
    certified = sshsig.parse_key(base64.b64decode(cert.read_text().split()[1]))
    assert signers.holders(certified) == {ALICE}
    wrapped = SecurityKey("ed25519")
    raw = wrapped.blob[len(sshkeys.string(wrapped.type.encode())) :][4:36]
    plain = sshkeys.string(b"ssh-ed25519") + sshkeys.string(raw)
    text = f"ssh-ed25519 {base64.b64encode(plain).decode()}"
    twice = signers_line(ALICE, text) + signers_line("bob@example.org", wrapped.public)
    with pytest.raises(SignersError):
        AllowedSigners.parse(twice.encode(), "approvers")


def test_refusals_by_reason(keys: Keys) -> None:
    key, other = keys.get("mine"), keys.get("other")
    line = signers_line(ALICE, sshkeys.public(key))
    good = sshkeys.sign(key, MESSAGE)
    elsewhere = signers_line(ALICE, sshkeys.public(key), namespace="git")
    sk = SecurityKey("ed25519")
    assert refused(good, line, MESSAGE + b" ") == "altered"
    assert refused(sshkeys.sign(key, MESSAGE, "git"), line) == "namespace"
    assert refused(good, elsewhere) == "namespace"
    assert refused(sshkeys.sign(other, MESSAGE), line) == "unknown-signer"
    assert refused(good, "") == "unknown-signer"
    early = signers_line(ALICE, sshkeys.public(key), 'valid-after="20260102Z"')
    late = signers_line(ALICE, sshkeys.public(key), 'valid-before="20260101120000Z"')
    assert refused(good, early) == "not-yet-valid"
    assert refused(good, late) == "expired"
    assert refused(good, line, revoked=sshkeys.public(key).encode()) == "revoked"
    assert refused(sk.sign(MESSAGE, flags=0), signers_line(ALICE, sk.public)) == "no-presence"
    assert refused(b"", line) == "malformed"


def test_refusals_of_certificates(keys: Keys) -> None:
    ca = sshkeys.public(keys.get("ca"))
    line = signers_line("*@example.org", ca, "cert-authority")

    def by(*options: str, principals: str = ALICE) -> bytes:
        return sshkeys.sign(keys.cert("refused", *options, principals=principals), MESSAGE)

    assert refused(by(), signers_line("*@elsewhere", ca, "cert-authority")) == "unknown-signer"
    assert refused(by(), signers_line(ALICE, ca)) == "unknown-signer"  # a key, not an authority
    assert refused(by(principals=""), line) == "certificate"
    assert refused(by("-O", "force-command=ls"), line) == "certificate"
    assert refused(by("-O", "source-address=192.0.2.0/24"), line) == "certificate"
    assert refused(by("-h"), line) == "certificate"
    assert refused(by("-V", "20250101:20251231"), line) == "expired"
    assert refused(by("-V", "20260201:20270101"), line) == "not-yet-valid"
    other = keys.get("other-ca")
    assert refused(by(), signers_line("*", sshkeys.public(other), "cert-authority")) == (
        "unknown-signer"
    )
    assert refused(by(), line, revoked=ca.encode()) == "revoked"


def test_refusal_of_a_weak_key(keys: Keys) -> None:
    key = keys.get("short", "rsa", "-b", "1024")
    assert refused(sshkeys.sign(key, MESSAGE), signers_line(ALICE, sshkeys.public(keys.get("mine")))
                   ) == "weak-key"  # fmt: skip
    with pytest.raises(SignersError):
        AllowedSigners.parse(signers_line(ALICE, sshkeys.public(key)).encode(), "approvers")


KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBpQ0G8+BsLl2nCk2HKqKc0zG9qz6OGnMyaUYQXQ4P4M"
TWO = "\N{ARABIC-INDIC DIGIT TWO}"
BAD_LINES: Dict[str, str] = {
    "no namespaces": f"{ALICE} {KEY}",
    "empty namespaces": f'{ALICE} namespaces="" {KEY}',
    "any namespace": f'{ALICE} namespaces="*" {KEY}',
    "all but one namespace": f'{ALICE} namespaces="!git" {KEY}',
    "time without Z": f'{ALICE} namespaces="x",valid-after="20260101" {KEY}',
    "time that is none": f'{ALICE} namespaces="x",valid-after="20261301Z" {KEY}',
    "empty time": f'{ALICE} namespaces="x",valid-before="" {KEY}',
    "option unknown": f'{ALICE} namespaces="x",zone="y" {KEY}',
    "option twice": f'{ALICE} namespaces="x",namespaces="y" {KEY}',
    "option without value": f"{ALICE} namespaces {KEY}",
    "authority with value": f'{ALICE} cert-authority="yes",namespaces="x" {KEY}',
    "two principals of one key": f'{ALICE},bob namespaces="x" {KEY}',
    "pattern for a key": f'*@example.org namespaces="x" {KEY}',
    "negation for a key": f'!bob namespaces="x" {KEY}',
    "quoted principal": f'"a b" namespaces="x" {KEY}',
    "no key": f'{ALICE} namespaces="x"',
    "cut key": f'{ALICE} namespaces="x" {KEY[:-4]}',
    "key with a letter more": f'{ALICE} namespaces="x" {KEY}A',
    "key of another type": f'{ALICE} namespaces="x" ssh-rsa {KEY.split()[1]}',
    "key of no type": f'{ALICE} namespaces="x" ssh-dss AAAAB3NzaC1kc3M=',
    "no options": f"{ALICE}",
    "garbage": "\x01\x02 nonsense",
    "space of another alphabet": f'{ALICE} namespaces="x" {KEY.replace(" ", chr(0xA0))}',
    "tab of a teletype": f'{ALICE} namespaces="x" {KEY.replace(" ", chr(11))}',
    "digits of another alphabet": f'{ALICE} namespaces="x",valid-before="{TWO}0300101Z" {KEY}',
    "never": f'{ALICE} namespaces="x",valid-after="20270101Z",valid-before="20260101Z" {KEY}',
}


@pytest.mark.parametrize("line", BAD_LINES.values(), ids=BAD_LINES.keys())
def test_allowed_signers_one_bad_line_and_nobody_counts(keys: Keys, line: str) -> None:
    good = signers_line("bob@example.org", sshkeys.public(keys.get("mine")))
    assert AllowedSigners.parse(good.encode(), "approvers").principals == {"bob@example.org"}
    with pytest.raises(SignersError) as caught:
        AllowedSigners.parse(f"# who\n{good}{line}\n".encode(), "approvers")
    (fault,) = caught.value.faults
    assert (fault.path, fault.line) == ("approvers", 3)


def test_every_truncation_of_allowed_signers_is_refused(keys: Keys) -> None:
    options = ('valid-after="20250101Z"', 'valid-before="20300101Z"')
    line = signers_line(ALICE, sshkeys.public(keys.get("mine")), *options)[:-1] + " alice's\n"
    source = line.encode()
    assert AllowedSigners.parse(source, "approvers").principals == {ALICE}
    for end in range(1, len(source)):
        with pytest.raises(SignersError):
            AllowedSigners.parse(source[:end], "approvers")


@given(st.data())
@settings(max_examples=60)
def test_allowed_signers_never_laxer_than_ssh_keygen(keys_now: Keys, data: st.DataObject) -> None:
    signature, signers = samples_now(keys_now)[data.draw(st.sampled_from((0, 2)))]
    line = list(signers)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(line) - 2))
        line[at : at + data.draw(st.integers(0, 1))] = data.draw(
            st.sampled_from(["", "*", "!", "?", ",", '"', " ", "\t", "\xa0", "=", "x", "\\", "#"])
        )
    altered = "".join(line)
    try:
        found = check(signature, altered)
    except (SignatureRefused, SignersError):
        return
    for name in found.principals:
        assert sshkeys.keygen_accepts(keys_now.place, MESSAGE, signature, altered, name)


def test_allowed_signers_names_every_fault() -> None:
    source = "\n".join(BAD_LINES.values()).encode() + b"\n\xff\n"
    with pytest.raises(SignersError) as caught:
        AllowedSigners.parse(source, "approvers")
    assert [fault.line for fault in caught.value.faults] == list(range(1, len(BAD_LINES) + 2))


def test_allowed_signers_one_key_has_one_principal(keys: Keys) -> None:
    key = sshkeys.public(keys.get("mine"))
    twice = signers_line(ALICE, key) + signers_line("bob@example.org", key)
    with pytest.raises(SignersError) as caught:
        AllowedSigners.parse(twice.encode(), "approvers")
    assert "is also that of alice@example.org" in caught.value.faults[0].message


# Revocation


def test_revoked_list_must_be_readable(keys: Keys) -> None:
    for source in (b"nonsense\n", b"ssh-ed25519\n", b"ssh-ed25519 AAAA\n", b"\xff\xff\n"):
        with pytest.raises(SignersError):
            RevokedKeys.parse(source, "revoked")
    assert RevokedKeys.parse(b"# nobody\n\n", "revoked").version is None


@pytest.mark.parametrize(
    "spec",
    (
        "key",
        "serial: 7",
        "serial: 1-20",
        "serial: 6\nserial: 7\nserial: 40\nserial: 41",
        "id: id-*",
        "sha1: key",
        "sha256: key",
        "hash: key",
    ),
)
def test_revocation_by_krl(keys: Keys, spec: str, tmp_path: Path) -> None:
    cert = keys.cert("krl", "-z", "7")
    key = cert.with_name(cert.name.replace("-cert.pub", ""))
    lines = signers_line("*", sshkeys.public(keys.get("ca")), "cert-authority")
    signature = sshkeys.sign(cert, MESSAGE)
    assert check(signature, lines).key.certificate is not None
    krl, text = tmp_path / "krl", tmp_path / "spec"
    plain = sshkeys.public(key)
    if spec.startswith("hash"):
        listed = sshkeys.run("ssh-keygen", "-l", "-f", f"{key}.pub").decode().split()[1]
        text.write_text(f"hash: {listed}\n")
    elif spec.endswith("key"):
        text.write_text(f"{spec[:-3]}{plain}\n")
    else:
        text.write_text(spec.replace("id-*", f"id-{key.name}") + "\n")
    ca = ("-s", f"{keys.get('ca')}.pub")
    sshkeys.run("ssh-keygen", "-q", "-k", "-f", str(krl), "-z", "12", *ca, str(text))
    assert not sshkeys.keygen_accepts(keys.place, MESSAGE, signature, lines, ALICE, revoked=krl)
    source = krl.read_bytes()
    parsed = RevokedKeys.parse(source, "revoked")
    assert parsed.version == 12 and parsed.generated is not None
    assert refused(signature, lines, revoked=source) == "revoked"
    untouched = sshkeys.sign(keys.cert("krl-other", "-z", "99"), MESSAGE)
    assert check(untouched, lines, revoked=source).principals == (ALICE,)
    empty = tmp_path / "empty"
    sshkeys.run("ssh-keygen", "-q", "-k", "-f", str(empty), "-z", "12")
    header = len(empty.read_bytes())  # where it ends nothing tells that a section is to follow
    for end in set(range(1, len(source))) - {header}:
        with pytest.raises(SignersError):
            RevokedKeys.parse(source[:end], "revoked")


# Truncation, mutation, vectors


def samples(keys: Keys) -> List[Tuple[bytes, str]]:
    sk, web = SecurityKey("ecdsa"), SecurityKey("ecdsa", application="x.example")
    ca = signers_line("*", sshkeys.public(keys.get("ca")), "cert-authority")
    rsa, mine = keys.get("rsa-b-2048", "rsa", "-b", "2048"), keys.get("mine")
    return [
        (sshkeys.sign(mine, MESSAGE), signers_line(ALICE, sshkeys.public(mine))),
        (sshkeys.sign(rsa, MESSAGE), signers_line(ALICE, sshkeys.public(rsa))),
        (sshkeys.sign(keys.cert("mutate"), MESSAGE), ca),
        (sk.sign(MESSAGE), signers_line(ALICE, sk.public)),
        (web.sign(MESSAGE, origin="https://x.example"), signers_line(ALICE, web.public)),
    ]


@pytest.mark.parametrize("number", range(5))
def test_every_truncation_is_refused(keys: Keys, number: int) -> None:
    signature, signers = samples(keys)[number]
    blob = sshkeys.disarm(signature)
    origins = ["https://x.example"]
    assert check(signature, signers, origins=origins)
    for end in range(len(blob)):
        assert refused(sshkeys.armour(blob[:end]), signers, origins=origins)
    assert refused(sshkeys.armour(blob + b"\0"), signers, origins=origins) == "malformed"
    for end in range(0, len(signature) - 1, 7):
        assert refused(signature[:end], signers, origins=origins) == "malformed"


@given(st.data())
@settings(max_examples=150)
def test_never_laxer_than_ssh_keygen(keys_now: Keys, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, 4))
    signature, signers = samples_now(keys_now)[number]
    blob = bytearray(sshkeys.disarm(signature))
    for _ in range(data.draw(st.integers(0, 2))):
        at = data.draw(st.integers(0, len(blob) - 1))
        cut = data.draw(st.integers(0, 1))
        blob[at : at + cut] = data.draw(st.binary(max_size=1))
    altered = sshkeys.armour(bytes(blob))
    try:
        check(altered, signers, origins=["https://x.example"])
    except SignatureRefused:
        return
    assert sshkeys.keygen_accepts(keys_now.place, MESSAGE, altered, signers, ALICE)


_MADE: List[Tuple[bytes, str]] = []


def samples_now(keys: Keys) -> List[Tuple[bytes, str]]:
    if not _MADE:
        _MADE.extend(samples(keys))
    return _MADE


@pytest.fixture(scope="module")
def keys_now(keys: Keys) -> Keys:
    return keys


@given(st.binary(max_size=400))
def test_any_bytes_are_refused_cleanly(raw: bytes) -> None:
    for source in (raw, sshkeys.armour(raw), sshkeys.armour(b"SSHSIG\0\0\0\1" + raw)):
        with pytest.raises(SignatureRefused):
            sshsig.SshSignature.parse(source)
    for parse in (AllowedSigners.parse, RevokedKeys.parse):
        try:
            parse(raw, "file")
        except SignersError:
            pass


def test_vectors_there_are() -> None:
    assert len(VECTORS) >= 12


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_vector(path: Path) -> None:
    fields: Dict[str, str] = {}
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            key, _, value = line.partition(": ")
            fields[key] = fields[key] + "\n" + value if key in fields else value
    at = datetime.strptime(fields["at"], "%Y-%m-%dT%H:%M:%S%z")
    try:
        signers = AllowedSigners.parse((fields.get("signers", "") + "\n").encode(), "approvers")
        found = sshsig.verify(
            bytes.fromhex(fields["message"]), base64.b64decode(fields["signature"]), signers,
            fields["namespace"], at,
        )  # fmt: skip
    except SignersError:
        got = "signers"
    except SignatureRefused as error:
        got = error.code
    else:
        got = "ok " + ",".join(found.principals)
    assert got == fields["expect"]


def test_no_two_keys_share_a_fingerprint() -> None:
    rng = random.Random(5)
    seen = {SecurityKey("ed25519", rng.randrange(1, 255)).blob for _ in range(20)}
    assert len({sshsig.parse_key(blob).fingerprint for blob in seen}) == len(seen)
