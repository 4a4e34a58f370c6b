"""Quorum over real signatures, and the audit of exemptions from the entries alone."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sshkeys
from recuse import grant as g
from recuse import grantrecords as gr
from recuse import records as rec
from recuse.approval import Asked
from recuse.errors import CryptoError
from recuse.grantaudit import GrantAudit
from recuse.policy import Decision
from recuse.sshsig import AllowedSigners
from some_entries import some_facts
from sshkeys import NAMESPACE, SecurityKey, signers_line

HOST = rec.Host("example.org/recuse/host/h/1", "h", "m", "b", "Debian", "0.1")
NOW = datetime(2026, 3, 4, 12, 0, tzinfo=timezone.utc)
NOW_NS = round(NOW.timestamp()) * 10**9
ID = "g-aaaaaaaaaaaaaaaa"
NAMES = ("alice", "bob", "carol", "dave")
KEYS = {name: SecurityKey("ed25519", seed) for seed, name in enumerate(NAMES, 1)}
SIGNERS = AllowedSigners.parse(
    "".join(signers_line(f"{name}@example.org", key.public) for name, key in KEYS.items()).encode(),
    "approvers",
)
BOB, CAROL = "bob@example.org", "carol@example.org"


def wanted(**more: Any) -> g.Wanted:
    asked = Asked(
        "alice", "alice", "h", "metadata", NOW, NOW + timedelta(hours=2), 2, "maintenance",
        "CHG-1", "index rebuild",
    )  # fmt: skip
    names = {one.name for one in dataclasses.fields(Asked)}
    asked = dataclasses.replace(asked, **{k: more.pop(k) for k in list(more) if k in names})
    values: Dict[str, Any] = {
        "id": ID, "org": "example.org", "asked": asked, "uid": 1000, "source": None, "issued": NOW,
        **more,
    }  # fmt: skip
    return g.Wanted(**values)


def request(one: Optional[g.Wanted] = None, approvers: int = 2, **more: Any) -> gr.Request:
    one = one or wanted()
    return gr.Request(
        one.id, g.write_request(one), one.asked, one.uid, 1000, one.source, "dba", approvers,
        ("leads",), "p" * 64, **more,
    )  # fmt: skip


def approval(
    name: str, of: Optional[gr.Request] = None, key: Optional[SecurityKey] = None, **more: Any
) -> gr.Approval:
    of, key = of or request(), key or KEYS[name]
    armored = key.sign(of.raw, **more).decode()
    return gr.Approval(of.id, of.digest, f"{name}@example.org", "signature", signature=armored)


def check(
    approvals: Sequence[gr.Approval], signers: AllowedSigners = SIGNERS, **more: Any
) -> g.Checked:
    terms = more.pop("terms", g.Terms(2))
    return g.check_grant(request(), approvals, signers, terms, NAMESPACE, NOW, **more)


def codes(checked: g.Checked) -> List[str]:
    assert not checked.enough
    return [one.code for one in checked.faults]


# The request


def test_request_is_read_back_whole() -> None:
    for one in (wanted(), wanted(source="192.0.2.0/24", max_seconds=60, supervised=True)):
        assert g.read_request(g.write_request(one)) == one
    assert wanted().namespace == NAMESPACE


BAD_REQUESTS: Dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda raw: raw[:-2],
    "no line end": lambda raw: raw[:-1],
    "a space more": lambda raw: raw.replace(b": ", b":  ", 1),
    "field twice": lambda raw: raw.replace(b'"uid"', b'"host": "h",\n "uid"'),
    "field unknown": lambda raw: raw.replace(b'"uid"', b'"extra": 1,\n "uid"'),
    "another order": lambda raw: raw.replace(b'"user"', b'"x"').replace(b'"host"', b'"user"')
    .replace(b'"x"', b'"host"').replace(b'"h"', b'"?"'),
    "number as text": lambda raw: raw.replace(b'"uses": 2', b'"uses": "2"'),
    "yes as number": lambda raw: raw.replace(b'"uses": 2', b'"uses": true'),
    "below nothing": lambda raw: raw.replace(b'"uses": 2', b'"uses": -2'),
    "time of a zone": lambda raw: raw.replace(b"12:00:00Z", b"12:00:00+01:00"),
    "level unknown": lambda raw: raw.replace(b"metadata", b"nothing"),
    "of another kind": lambda raw: raw.replace(b"request/1", b"request/2"),
    "a list": lambda raw: b"[]\n",
    "too long": lambda raw: raw + b" " * 4096,
    "nested": lambda raw: b"[" * 4000,
    "half a character": lambda raw: raw.replace(b"index", rb"\ud800"),
}  # fmt: skip


@pytest.mark.parametrize("spoil", BAD_REQUESTS.values(), ids=BAD_REQUESTS.keys())
def test_request_that_is_not_written_as_one_is_refused(spoil: Callable[[bytes], bytes]) -> None:
    with pytest.raises(CryptoError):
        g.read_request(spoil(g.write_request(wanted())))


def test_request_of_somebody_whose_name_is_no_text_is_refused() -> None:
    with pytest.raises(CryptoError, match="a name in the request is not UTF-8"):
        g.write_request(wanted(user=os.fsdecode(b"ren\xe9")))


def test_every_truncation_of_a_request_is_refused() -> None:
    raw = g.write_request(wanted())
    for end in range(len(raw)):
        with pytest.raises(CryptoError):
            g.read_request(raw[:end])


@given(st.binary(max_size=200))
def test_any_bytes_are_no_request(raw: bytes) -> None:
    with pytest.raises(CryptoError):
        g.read_request(raw)


# Quorum


@pytest.mark.parametrize("names", (("bob", "carol"), ("carol", "bob"), ("bob", "carol", "dave")))
def test_enough_approvals_in_any_order(names: Sequence[str]) -> None:
    checked = check([approval(name) for name in names])
    assert checked.enough and checked.people == len(names) and not checked.faults


def test_one_approver_is_not_two_however_often_they_sign() -> None:
    assert codes(check([approval("bob")])) == []
    assert codes(check([approval("bob"), approval("bob", counter=9)])) == ["twice"]


def test_nobody_approves_their_own() -> None:
    assert codes(check([approval("bob"), approval("alice")])) == ["self"]
    others = {"alice@example.org": frozenset({"someone"}), CAROL: frozenset({"alice"})}
    found = check(
        [approval("bob"), approval("carol")],
        accounts_of=lambda name: others.get(name, g.account_of(name)),
    )
    assert codes(found) == ["self"]


def test_a_certificate_makes_nobody_somebody_else(tmp_path: Path) -> None:
    ca, mine = (sshkeys.make_key(tmp_path, name) for name in ("ca", "mine"))
    cert = sshkeys.certify(ca, mine, principals="eve@example.org")
    armored = sshkeys.sign(cert, request().raw).decode()
    lines = signers_line("*@example.org", sshkeys.public(ca), "cert-authority")
    lines += signers_line(BOB, KEYS["bob"].public)
    eve = gr.Approval(ID, request().digest, "eve@example.org", "signature", signature=armored)
    assert check([approval("bob"), eve], AllowedSigners.parse(lines.encode(), "a")).enough
    for owner, code in (("alice", "self"), ("bob", "twice")):
        more = signers_line(f"{owner}@example.org", sshkeys.public(mine), namespace="git")
        known = lines.replace(BOB, "carol@example.org") if owner == "bob" else lines
        plain = gr.Approval(
            ID, request().digest, BOB, "signature",
            signature=sshkeys.sign(mine, request().raw).decode(),
        )  # fmt: skip
        if owner == "bob":
            more = signers_line(BOB, sshkeys.public(mine))
        first = plain if owner == "bob" else approval("bob")
        found = check([first, eve], AllowedSigners.parse((known + more).encode(), "a"))
        assert codes(found) == [code]


@pytest.mark.parametrize(
    "code, build",
    (
        ("no-presence", lambda: approval("carol", flags=0)),
        ("namespace", lambda: approval("carol", namespace="git")),
        ("altered", lambda: dataclasses.replace(
            approval("carol", request(wanted(uses=9))), digest=request().digest)),
        ("altered", lambda: approval("carol", request(wanted(uses=9)))),
        ("unknown-signer", lambda: approval("carol", key=SecurityKey("ed25519", 99))),
        ("unknown-signer", lambda: approval("carol", key=KEYS["dave"])),
        ("unsigned", lambda: dataclasses.replace(approval("carol"), method="automatic")),
        ("unsigned", lambda: dataclasses.replace(approval("carol"), signature=None)),
        ("local", lambda: dataclasses.replace(approval("carol"), method="pam")),
        ("malformed", lambda: dataclasses.replace(approval("carol"), signature="x")),
    ),
)  # fmt: skip
def test_an_approval_that_does_not_count(code: str, build: Callable[[], gr.Approval]) -> None:
    assert codes(check([approval("bob"), build()])) == [code]
    assert check([build(), approval("bob"), approval("dave")]).people >= 2


@pytest.mark.parametrize(
    "code, terms",
    (
        ("group", g.Terms(2, principals=frozenset({BOB}))),
        ("no-verification", g.Terms(2, verification=True)),
        ("key-type", g.Terms(2, key_types=frozenset({"ssh-rsa"}))),
    ),
)
def test_what_is_asked_of_approvals(code: str, terms: g.Terms) -> None:
    bob = approval("bob", flags=5)
    assert code in codes(check([bob, approval("carol")], terms=terms))


def test_approval_by_password_counts_where_terms_say_so() -> None:
    carol = dataclasses.replace(approval("carol"), method="pam", signature=None)
    assert check([approval("bob"), carol], terms=g.Terms(2, local=True)).enough


@given(st.lists(st.sampled_from(NAMES), max_size=5), st.integers(1, 3), st.booleans())
def test_never_enough_without_so_many_others(names: List[str], needed: int, touched: bool) -> None:
    approvals = [approval(name, flags=int(touched)) for name in names]
    checked = check(approvals, terms=g.Terms(needed))
    others = set(names) - {"alice"} if touched else set()
    assert checked.people == len(others)
    assert checked.enough == (len(others) >= needed)


@pytest.mark.parametrize(
    "source, network, inside",
    (
        ("192.0.2.7:40112", "192.0.2.0/24", True),
        ("192.0.2.7", "192.0.2.7", True),
        ("[2001:db8::1]:99", "2001:db8::/32", True),
        ("[::ffff:192.0.2.7]:99", "192.0.2.0/24", True),
        ("198.51.100.1:1", "192.0.2.0/24", False),
        (None, "192.0.2.0/24", False),
        ("unknown", "0.0.0.0/0", False),
    ),
)
def test_is_from(source: Optional[str], network: str, inside: bool) -> None:
    assert g.is_from(source, network) is inside


# The audit


FACTS = some_facts(host="h", tty=True, login_shell=True)


@dataclass
class Story:
    """What is entered, in order; each step may be told otherwise than it should be."""

    request: gr.Request = field(default_factory=request)
    signers: Optional[AllowedSigners] = SIGNERS
    method: str = "signature"
    raws: List[bytes] = field(default_factory=list)
    uids: Dict[str, List[str]] = field(default_factory=dict)
    owner: str = "nobody"

    def add(self, build: Any, *arguments: Any, **more: Any) -> str:
        kind = build.__name__.partition("_")[0]
        index = len(self.raws)
        self.raws.append(build(HOST, index, NOW_NS + index * 10**9, *arguments, **more))
        uid = f"{HOST.origin}:{index}"
        self.uids.setdefault(kind, []).append(uid)
        return uid

    def grant(self, names: Sequence[str] = ("bob", "carol")) -> Story:
        self.add(gr.request_entry, self.request)
        for name in names:
            self.add(gr.approval_entry, approval(name, self.request))
        uids = self.uids.get("approval", [])
        self.own(names)
        asked = self.uids["request"][0]
        self.add(gr.grant_entry, self.request, self.method, self.owner, asked, uids)
        return self

    def own(self, names: Sequence[str]) -> None:
        self.owner = ", ".join(approval(name, self.request).principal for name in names) or "auto"

    def use(
        self, n: int = 1, name: str = "s-1", start: timedelta = timedelta(minutes=1), **more: Any
    ) -> Story:
        at_ns = NOW_NS + round(start.total_seconds()) * 10**9
        login = rec.Login(
            "l-1", more.pop("user", "alice"), more.pop("uid", 1000), None, None, "sshd",
            rec.Source(more.pop("source", None)), None, None, 7, at_ns,
        )  # fmt: skip
        session = rec.Session(name, login, "shell", None, None, False, "/bin/sh", 8, at_ns, 0)
        decision = Decision(
            "exempt", None, "grant", "maintenance", more.pop("owner", self.owner), None, None, "p",
            (), FACTS, more.pop("grant", ID), level=more.pop("level", "metadata"),
            supervised=more.pop("supervised", False),
            reason_code=more.pop("reason_code", self.request.asked.reason),
        )  # fmt: skip
        use: Optional[Dict[str, Any]] = {
            "n": n, "uses": 2, "digest": self.request.digest,
            "request_entry": self.uids.get("request", [None])[0],
            "grant_entry": self.uids.get("grant", [None])[0],
            "approval_entries": self.uids.get("approval", []),
        }  # fmt: skip
        use = more.pop("use", {**(use or {}), **more})
        self.add(rec.exempt_entry, session, decision, grant_use=use)
        return self

    def close(self, name: str, start: timedelta, after: timedelta) -> Story:
        at_ns = NOW_NS + round(start.total_seconds()) * 10**9
        login = rec.Login(
            "l-1", "alice", 1000, None, None, "sshd", rec.Source(), None, None, 7, at_ns
        )
        session = rec.Session(name, login, "shell", None, None, False, "/bin/sh", 8, at_ns, 0)
        ended_ns = at_ns + round(after.total_seconds()) * 10**9
        self.add(rec.close_entry, session, "exempt", "exempt", ended_ns, 0, 0, 0, None)
        return self

    def audit(self) -> GrantAudit:
        found = GrantAudit(self.signers)
        self.codes = [one.code for raw in self.raws for one in found.read(rec.parse(raw))]
        return found


def said(story: Story) -> List[str]:
    story.audit()
    return story.codes


def test_audit_finds_nothing_in_what_is_right() -> None:
    story = Story().grant().use(1).use(2, "s-2")
    found = story.audit()
    assert story.codes == [] and found.checked == 2
    assert not found.unchecked and not found.unsigned


def test_audit_says_what_it_could_not_check() -> None:
    story = Story(signers=None).grant().use()
    assert story.audit().unchecked == {ID} and story.codes == []
    automatic = Story(request(approvers=0), method="automatic").grant(()).use()
    assert automatic.audit().unsigned == {ID: "approved automatically"} and automatic.codes == []


LATER = timedelta(hours=3)
WRONG: Dict[str, Callable[[], Story]] = {
    "grant-unknown": lambda: Story().use(),
    "grant-uses": lambda: Story().grant().use(1).use(1, "s-2"),
    "grant-uses too many": lambda: Story().grant().use(1).use(2, "s-2").use(3, "s-3"),
    "grant-uses not counted": lambda: Story().grant().use(use=None),
    "grant-quorum": lambda: Story().grant(("bob",)).use(),
    "grant-quorum self": lambda: Story().grant(("bob", "alice")).use(),
    "grant-quorum twice": lambda: Story().grant(("bob", "bob")).use(),
    "grant-quorum automatic": lambda: Story(method="automatic").grant(()).use(),
    "grant-window before": lambda: Story().grant().use(start=-timedelta(minutes=1)),
    "grant-window after": lambda: Story().grant().use(start=LATER),
    "grant-user": lambda: Story().grant().use(user="eve"),
    "grant-user uid": lambda: Story().grant().use(uid=0),
    "grant-host": lambda: Story(request(wanted(host="other"))).grant().use(),
    "grant-source": lambda: Story(request(wanted(source="192.0.2.0/24"))).grant().use(
        source="198.51.100.1:7"),
    "grant-level": lambda: Story(request(wanted(level="output"))).grant().use(),
    "grant-level supervised": lambda: Story(request(wanted(supervised=True))).grant().use(),
    "grant-request org": lambda: Story(request(wanted(org="elsewhere"))).grant(()).use(),
    "grant-request digest": lambda: Story().grant().use(digest="0" * 64),
    "grant-request fields": lambda: Story(dataclasses.replace(request(), uid=0)).grant().use(uid=0),
    "grant-debt": lambda: Story(method="break-glass").grant(()).use(),
    "grant-overrun": lambda: Story(request(wanted(max_seconds=60))).grant().use().close(
        "s-1", timedelta(minutes=1), timedelta(minutes=5)),
    "grant-overrun end": lambda: Story(request(end_sessions=True)).grant().use().close(
        "s-1", timedelta(minutes=1), LATER),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_audit_finds_what_is_wrong(name: str) -> None:
    found = said(WRONG[name]())
    assert name.split()[0] in found
    if name.startswith(("grant-quorum", "grant-w", "grant-user", "grant-h", "grant-l", "grant-s")):
        assert set(found) == {name.split()[0]}


def test_audit_reads_revocations_in_order() -> None:
    used = Story().grant().use()
    used.add(gr.end_entry, "revocation", ID, "bob", 5, "")
    assert said(used) == []
    after = Story().grant()
    after.add(gr.end_entry, "revocation", ID, "bob", 5, "")
    assert said(after.use()) == ["grant-revoked"]


def test_audit_of_a_key_that_had_expired_at_the_time_of_use() -> None:
    line = signers_line(BOB, KEYS["bob"].public, 'valid-before="20260304121000Z"')
    lines = line + signers_line(CAROL, KEYS["carol"].public)
    signers = AllowedSigners.parse(lines.encode(), "approvers")
    early = Story(signers=signers).grant().use(start=timedelta(minutes=9))
    late = Story(signers=signers).grant().use(start=timedelta(minutes=11))
    assert (said(early), said(late)) == ([], ["grant-quorum"])


@pytest.mark.parametrize("key", ["owner", "reason_code"])
def test_audit_names_a_use_that_shows_other_grounds_than_the_grant(key: str) -> None:
    assert said(Story().grant().use(**{key: "ceo@example.org"})) == ["grant-request"]


def test_audit_names_a_use_that_is_entered_after_the_end_of_the_grant() -> None:
    story = Story().grant().use()
    late = json.loads(story.raws[-1])
    late["metadata"]["original_time"] = rec.format_time(NOW_NS + 86400 * 10**9)
    story.raws[-1] = json.dumps(late).encode()
    assert said(story) == ["grant-window"]


@pytest.mark.parametrize(
    "key, value, found",
    [
        ("owner", "ceo@example.org", "grant-quorum"), ("uses", 9, "grant-request"),
        ("user", "eve", "grant-request"), ("requester", "eve", "grant-request"),
        ("expires", "2099-01-01T00:00:00.000000000Z", "grant-request"),
        ("reason", "other", "grant-request"), ("level", "output", "grant-request"),
        ("approval_entries", [], "grant-request"), ("request_entry", "x:1", "grant-request"),
    ],
)  # fmt: skip
def test_audit_names_a_grant_that_says_otherwise_than_its_request(
    key: str, value: Any, found: str
) -> None:
    story = Story().grant()
    grant = json.loads(story.raws[-1])
    grant["unmapped"]["recuse"][key] = value
    story.raws[-1] = json.dumps(grant).encode()
    assert said(story) == [found]


def test_audit_names_steps_that_lead_nowhere() -> None:
    story = Story()
    story.add(gr.approval_entry, approval("bob"))
    story.add(gr.review_entry, approval("bob"))
    story.uids.clear()
    story.grant()
    story.add(gr.request_entry, request())
    story.add(gr.grant_entry, request(), "signature", "bob", "o:1", [])
    assert said(story) == ["grant-entry"] * 4


def test_grants_of_before_an_epoch_are_void() -> None:
    story = Story().grant()
    previous = {"origin": "example.org/recuse/host/h/0", "size": 4, "root": "r"}
    story.add(rec.start_entry, previous, "boot")
    assert said(story.use()) == ["grant-void"]


def test_keys_of_this_test_are_different() -> None:
    assert len({base64.b64encode(key.blob) for key in KEYS.values()}) == len(KEYS)
