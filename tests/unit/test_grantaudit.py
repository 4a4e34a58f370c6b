"""The audit of grants against an approval policy, and of what was signed besides approvals."""

from __future__ import annotations

import dataclasses
import hashlib
from datetime import timedelta
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

import pytest
import test_grant as tg
from test_desk import Office, make_office, play

from recuse import grantrecords as gr
from recuse import keys, mail
from recuse import records as rec
from recuse.approval import ApprovalPolicy
from recuse.approvaltoml import parse_approval
from recuse.cli import main
from recuse.config import Paths
from recuse.grantaudit import GrantAudit
from recuse.ledger import Ledger
from recuse.policytoml import parse_policy
from recuse.sshsig import parse_key

POLICY = """
[reasons.maintenance]
text.en = "maintenance"
[reasons.private]
text.en = "private"
roles = ["dba"]
[roles.dba]
groups = ["dba"]
"""
APPROVAL = """
[approvers]
leads = ["bob@example.org", "carol@example.org", "dave@example.org"]
security = ["erin@example.org"]

[never]
users = ["eve"]
host_tags = ["!odd"]

[[allow]]
name = "dba"
groups = ["dba"]
hosts = ["h*"]
reasons = ["maintenance"]
longest = "4h"
uses = 2
approvers = 2
from = ["leads"]

[[allow]]
name = "auto"
users = ["alice"]
reasons = ["private"]
longest = "15m"
budget = "20m"
auto = true

[break_glass]
users = ["alice"]
longest = "2h"
uses = 2
review_within = "24h"
reviewers = ["leads"]
"""


def approval_policy(*changes: Sequence[str]) -> ApprovalPolicy:
    text = APPROVAL
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return parse_approval([("a.toml", text.encode())], parse_policy([("p.toml", POLICY.encode())]))


def request(wanted: Any = None, **more: Any) -> gr.Request:
    """Make a request as a host enters it that has POLICY and APPROVAL."""
    policy = more.pop("policy", approval_policy().digest)
    return dataclasses.replace(tg.request(wanted or tg.wanted()), policy=policy, **more)


class Story(tg.Story):
    """As there, held against approval policies."""

    policies: Sequence[ApprovalPolicy] = (approval_policy(),)
    basis = gr.Basis(approval_policy().digest, tg.SIGNERS.digest)

    def grant(self, names: Sequence[str] = ("bob", "carol")) -> Story:
        self.add(gr.request_entry, self.request)
        for count, name in enumerate(names, 10):
            self.add(gr.approval_entry, tg.approval(name, self.request, counter=count))
        uids = self.uids.get("approval", [])
        self.own(names)
        self.add(
            gr.grant_entry, self.request, self.method, self.owner, self.uids["request"][0], uids,
            self.basis,
        )  # fmt: skip
        return self

    def under(self, *policies: ApprovalPolicy) -> Story:
        self.policies = policies
        return self

    def audit(self) -> GrantAudit:
        found = GrantAudit(self.signers, None, self.policies)
        self.faults = [one for raw in self.raws for one in found.read(rec.parse(raw))]
        self.codes = [one.code for one in self.faults]
        return found

    def doubts(self) -> List[str]:
        return [one.code for _, one in self.audit().doubts(None)]


def story(one: Optional[gr.Request] = None, **more: Any) -> Story:
    return Story(one or request(), **more)


# Against an approval policy


def test_a_grant_that_the_policy_allows() -> None:
    found = story().grant().use()
    assert found.doubts() == [] and found.codes == []


def test_without_a_policy_the_audit_says_whose_word_the_quorum_is() -> None:
    found = story().under().grant()
    doubt = {one.code: one.message for _, one in found.audit().doubts(None)}
    told = doubt["grant-policy-unchecked"]
    assert found.codes == [] and "took 2 approvers from leads for 1 grant" in told


CLAIMS: Dict[str, Callable[[], Story]] = {
    "asked for 1 approver, and it takes 2": lambda: story(request(approvers=1)).grant(["bob"]),
    "from security, which may not": lambda: story(request(groups=("security",))).grant(),
    "no allowance 'easy'": lambda: story(request(allowance="easy")).grant(),
    "no allowance ''": lambda: story(request(allowance=None)).grant(),
    "'maintenance' is no reason here": lambda: story(
        request(allowance="auto", approvers=0), method="automatic").grant(()),
    "is more than what is left of this month's": lambda: story(request(
        tg.wanted(reason="private"), allowance="auto", approvers=0), method="automatic").grant(()),
    "is not for alice on x": lambda: story(request(tg.wanted(host="x"))).grant(),
    "users eve are never exempt": lambda: story(request(tg.wanted(user="eve"))).grant(),
    "may not ask for alice": lambda: story(request(tg.wanted(requester="bob"))).grant(),
    "is longer than 4h": lambda: story(
        request(tg.wanted(expires=tg.NOW + timedelta(hours=5)))).grant(),
    "9 uses are more than 2": lambda: story(request(tg.wanted(uses=9))).grant(),
    "none of those given": lambda: story(request(policy="f" * 64)).grant(),
    "only supervised exemptions": lambda: story().under(
        approval_policy(("uses = 2\napp", "uses = 2\nsupervised = true\napp"))).grant(),
    "sessions had to end with it": lambda: story().under(
        approval_policy(("uses = 2\napp", "uses = 2\nend_sessions = true\napp"))).grant(),
}  # fmt: skip


@pytest.mark.parametrize("words", CLAIMS)
def test_a_host_that_claims_another_policy_than_was_in_force(words: str) -> None:
    found = CLAIMS[words]()
    found.audit()
    assert any(words in one.message for one in found.faults), found.faults
    assert set(found.codes) == {"grant-policy"}


def test_each_grant_is_held_against_the_policy_that_it_names() -> None:
    older = approval_policy(("approvers = 2", "approvers = 1"))
    one = story(request(approvers=1, policy=older.digest)).under(older, approval_policy())
    one.basis = dataclasses.replace(one.basis, policy=older.digest)
    one.grant(["bob"]).use().audit()
    assert one.codes == []
    one.under(approval_policy()).audit()
    assert set(one.codes) == {"grant-policy", "grant-quorum"}


QUORUMS: Dict[str, Callable[[], Story]] = {
    "too few": lambda: story(request(approvers=1)).grant(["bob"]),
    "outside the group": lambda: story().under(
        approval_policy((', "dave@example.org"', ""))).grant(("bob", "dave")),
    "own other account": lambda: story().under(
        approval_policy(("[never]", '[accounts]\n"bob@example.org" = ["alice"]\n[never]'))).grant(),
    "one person": lambda: story().under(approval_policy(
        ("[never]", '[accounts]\n"bob@example.org" = ["carol"]\n[never]'))).grant(),
    "kind of key": lambda: story().under(approval_policy(
        ('from = ["leads"]', 'from = ["leads"]\nkey_types = ["ssh-ed25519"]'))).grant(),
    "finger": lambda: story().under(approval_policy(
        ('from = ["leads"]', 'from = ["leads"]\nverification = true'))).grant(),
    "nobody": lambda: story(method="automatic").grant(()),
}  # fmt: skip


@pytest.mark.parametrize("name", QUORUMS)
def test_a_use_without_the_quorum_of_the_policy(name: str) -> None:
    found = QUORUMS[name]().use()
    found.audit()
    assert "grant-quorum" in found.codes


def test_a_password_counts_by_the_policy_alone() -> None:
    local = approval_policy(('from = ["leads"]', 'from = ["leads"]\nlocal = true'))

    def told(policy: ApprovalPolicy) -> List[str]:
        one = story(request(policy=policy.digest), method="pam").under(policy)
        one.basis = dataclasses.replace(one.basis, policy=policy.digest)
        one.add(gr.request_entry, one.request)
        for name in ("bob", "carol"):
            plain = gr.Approval(tg.ID, one.request.digest, f"{name}@example.org", "pam")
            one.add(gr.approval_entry, plain)
        uids = one.uids["approval"]
        one.own(("bob", "carol"))
        first = one.uids["request"][0]
        one.add(gr.grant_entry, one.request, "pam", one.owner, first, uids, one.basis)
        one.use().audit()
        return one.codes

    assert (told(local), told(approval_policy())) == ([], ["grant-quorum"])


def test_a_swapped_file_of_approvers_is_visible() -> None:
    one = story()
    one.basis = dataclasses.replace(one.basis, approvers_file="e" * 64)
    assert one.grant().doubts() == ["grant-approvers"] and one.codes == []
    one = story(signers=None)  # nothing to compare with
    assert one.grant().doubts() == []
    row = gr.fold_grants(map(rec.parse, one.raws)).rows[tg.ID]
    assert row.basis == one.basis
    assert row.to_json(tg.NOW)["approvers_file"] == tg.SIGNERS.digest


def test_an_entry_of_an_older_version_names_no_files() -> None:
    one = story()
    one.basis = gr.Basis()
    assert one.grant().doubts() == [] and one.codes == []


# Broken glass


def glass(**more: Any) -> Story:
    """Somebody breaks the glass, and uses it."""
    asked = dataclasses.replace(
        tg.wanted().asked, reason="break-glass", ticket=None, why="it burns"
    )
    one = story(request(tg.wanted(asked=asked), allowance=None, approvers=0), method="break-glass")
    due = tg.NOW_NS + round(more.get("due", timedelta(hours=1)).total_seconds()) * 10**9
    statement = more.get("statement") or review_of(one)
    one.add(gr.request_entry, one.request)
    one.add(gr.debt_entry, one.request, due, more.get("reviewers", ["leads"]), statement)
    one.owner = "a"
    one.add(gr.grant_entry, one.request, "break-glass", "a", one.uids["request"][0], [], one.basis)
    return one


def review_of(one: Story, **more: str) -> bytes:
    told = mail.Review(tg.ID, "example.org", "h", "alice", one.request.digest, "it burns")
    return mail.write_review(dataclasses.replace(told, **more))


def review(name: str, by: Optional[str] = None, **more: Any) -> Story:
    one = glass()
    statement = review_of(one)
    signed = more.pop("signed", statement)
    values: Dict[str, Any] = {
        "grant": tg.ID, "digest": hashlib.sha256(statement).hexdigest(),
        "principal": f"{by or name}@example.org", "method": "signature",
        "signature": tg.KEYS[name].sign(signed, counter=30).decode(), **more,
    }  # fmt: skip
    one.add(gr.review_entry, gr.Approval(**values))
    return one


def test_glass_that_was_broken_and_reviewed() -> None:
    found = review("bob").use()
    assert found.doubts() == [] and found.codes == []


@pytest.mark.parametrize(
    "words, build",
    (
        ("signed by bob@", lambda: review("bob", by="carol")),
        ("nobody reviews their own", lambda: review("alice")),
        ("is not over these bytes", lambda: review("bob", signed=b"{}")),
        ("malformed", lambda: review("bob", signature=None)),
        ("it is not signed", lambda: review("bob", method="automatic", signature=None)),
        ("a password does not count", lambda: review("bob", method="pam", signature=None)),
        ("of something else", lambda: review("bob", digest="0" * 64)),
    ),
)
def test_a_review_that_does_not_hold(words: str, build: Callable[[], Story]) -> None:
    found = build()
    audit = found.audit()
    assert found.codes == ["grant-review"] and words in found.faults[0].message, found.faults
    assert [one.code for _, one in audit.doubts(tg.NOW_NS + 3601 * 10**9)] == ["debt-overdue"]
    found.use(start=timedelta(minutes=70)).audit()
    assert "grant-debt" in found.codes


def test_a_reviewer_from_outside_the_groups() -> None:
    found = review("dave").under(approval_policy((', "dave@example.org"', "")))
    found.audit()
    assert "grant-review" in found.codes


def test_a_second_review_is_of_nothing() -> None:
    one = review("bob")
    one.raws.append(one.raws[-1])
    one.audit()
    assert one.codes == ["grant-entry"]


@pytest.mark.parametrize(
    "code, more",
    (
        ("grant-debt", {"statement": b"{}"}),
        ("grant-policy", {"reviewers": ["leads", "security"]}),
        ("grant-policy", {"due": timedelta(hours=25)}),
    ),
)
def test_a_debt_that_is_not_what_it_should_be(code: str, more: Dict[str, Any]) -> None:
    found = glass(**more)
    found.audit()
    assert found.codes == [code]


def test_what_its_reviewer_signs_is_about_that_request() -> None:
    for field in ("debt", "org", "host", "user", "digest", "why"):
        found = glass(statement=review_of(glass(), **{field: "other"}))
        found.audit()
        assert found.codes == ["grant-debt"], field


def test_glass_that_is_broken_for_longer_than_the_policy_has_it() -> None:
    found = glass().under(approval_policy(('longest = "2h"', 'longest = "1h"')))
    found.audit()
    assert set(found.codes) == {"grant-policy"}


# Ends


def ended(name: str = "bob", by: Optional[str] = None, **more: Any) -> Story:
    one = story().grant()
    told = mail.Statement("revocation", tg.ID, "example.org", "h", one.request.digest, "enough")
    raw = mail.write_statement(dataclasses.replace(told, **more.pop("told", {})))
    signature = more.pop("signature", tg.KEYS[name].sign(raw, counter=40).decode())
    fingerprint = more.pop("key", _fingerprint(name))
    proof = gr.SignedEnd(raw.decode(), signature, fingerprint, "sk-ssh-ed25519@openssh.com")
    one.add(gr.end_entry, "revocation", tg.ID, f"{by or name}@example.org", 0, "enough", proof)
    return one


def _fingerprint(name: str) -> str:
    return parse_key(tg.KEYS[name].blob).fingerprint


@pytest.mark.parametrize(
    "words, build",
    (
        ("signed by bob@", lambda: ended(by="carol")),
        ("not over these bytes", lambda: ended(signature=tg.KEYS["bob"].sign(b"x").decode())),
        ("malformed", lambda: ended(signature="x")),
        ("signed with SHA256:", lambda: ended(key=_fingerprint("carol"))),
        ("about another request", lambda: ended(told={"digest": "0" * 64})),
        ("about another request", lambda: ended(told={"org": "other.example"})),
        ("neither approve", lambda: ended("dave").under(
            approval_policy((', "dave@example.org"', "")))),
    ),
)  # fmt: skip
def test_a_signed_end_that_does_not_hold(words: str, build: Callable[[], Story]) -> None:
    found = build()
    found.audit()
    assert "grant-end" in found.codes and any(words in one.message for one in found.faults)


def test_a_signed_end_by_an_approver_or_by_who_asked() -> None:
    for name in ("bob", "alice"):
        found = ended(name)
        found.audit()
        assert found.codes == []


# Counters of security keys


def counted(*counters: int) -> Story:
    """Bob approves one request after another."""
    one = Story()
    for number, counter in enumerate(counters):
        name = f"g-{number:016d}"
        asked = request(tg.wanted(id=name))
        one.add(gr.request_entry, asked)
        one.add(gr.approval_entry, tg.approval("bob", asked, counter=counter))
    return one


@pytest.mark.parametrize(
    "counters, faults, doubts",
    (
        ((1, 2, 9), [], []),
        ((0, 0, 0), [], []),
        ((0, 5, 6), [], []),
        ((5, 5), ["key-counter"], []),
        ((5, 4), [], ["key-counter"]),
        ((5, 0), [], ["key-counter"]),
        ((9, 3, 4), [], ["key-counter", "key-counter"]),
    ),
)
def test_a_key_that_does_not_count_on(
    counters: Sequence[int], faults: List[str], doubts: List[str]
) -> None:
    found = counted(*counters)
    assert (found.doubts(), found.codes) == (doubts, faults)


def test_an_approval_whose_signature_is_of_something_else_is_a_fault_of_its_own() -> None:
    one = Story()
    one.add(gr.request_entry, one.request)
    other = tg.approval("bob", request(tg.wanted(uses=9)))
    one.add(gr.approval_entry, dataclasses.replace(other, digest=one.request.digest))
    one.audit()
    assert one.codes == ["grant-signature"]


# By the command, against a root who has the host's key and writes what they like


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    return make_office(tmp_path, monkeypatch)


def test_root_lowers_the_quorum_and_the_auditor_sees_it(
    paths: Paths, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The agent enters what is right; root changes it, and signs the ledger with the host's key."""

    async def scene(world: Office) -> None:
        told = await world.granted()
        assert told["approvers_file"] and told["policy"]
        assert await world.verdict() == "exempt"
        broken = await world.as_("bob", "break-glass", why="it burns")
        debt = broken["debt"]
        signature = world.keys.sign("carol", debt["statement"])
        answer = await world.as_("root", "review", grant=debt["debt"], signature=signature)
        assert answer["ok"], answer

    world = play(paths, scene)
    etc = tmp_path / "auditor" / "etc"
    (etc / "approval.d").mkdir(parents=True)
    (etc / "policy.d").mkdir()
    for name in ("approval.d/a.toml", "policy.d/a.toml"):
        (etc / name).write_bytes((paths.etc / name).read_bytes())
    (etc / "approvers").write_bytes(paths.approvers.read_bytes())
    raws = list(world.agent.book.ledger.entries(0))

    def verify(number: int, change: Callable[[bytes], bytes], *more: str) -> "tuple[int, str]":
        copy = tmp_path / f"copy-{number}"
        signer = keys.load_or_create(paths.state / "host.key", world.agent.book.host.origin)
        ledger = Ledger.open(copy, signer, rec.parse(raws[-1]).time_ns)
        ledger.append([change(raw) for raw in raws])
        ledger.checkpoint()
        ledger.close()
        capsys.readouterr()
        code = main([
            "verify", "--dir", str(copy), "--key", str(paths.host_pub), "--blobs", "skip",
            "--approvers", str(etc / "approvers"), *more,
        ])  # fmt: skip
        return code, capsys.readouterr().out

    policy = ("--approval-policy", str(etc / "approval.d"))
    code, out = verify(0, lambda raw: raw, *policy)
    assert "grant-" not in out and "approval policy" not in out and code == 0, out
    code, out = verify(1, lambda raw: raw)
    assert code == 0 and "took 2 approvers from leads, security for 1 grant" in out

    def one_is_enough(raw: bytes) -> bytes:
        return raw.replace(b'"approvers":2', b'"approvers":1')

    code, out = verify(2, one_is_enough, *policy)
    assert code == 10 and "the host asked for 1 approver, and it takes 2" in out, out
    code, out = verify(3, one_is_enough)
    assert code == 0 and "took 1 approver from leads, security" in out

    def by_erin(raw: bytes) -> bytes:
        kind = rec.parse(raw).kind
        return raw.replace(b'"carol@', b'"erin@') if kind == "review" else raw

    code, out = verify(4, by_erin, *policy)
    assert code == 10 and "it was signed by carol@example.org" in out, out
    code, out = verify(5, lambda raw: raw, "--approval-policy", str(etc / "nothing"))
    assert code == 6 and out == ""
    (etc / "approval.d/a.toml").write_text("[[allow]]\n")
    assert verify(6, lambda raw: raw, *policy)[0] == 4
