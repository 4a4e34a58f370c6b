"""Entries of requests and grants, and the state they add up to."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime, timedelta, timezone
from typing import Any, Dict, List, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from recuse import grantrecords as gr
from recuse import records as rec
from recuse.approval import Asked
from recuse.errors import LedgerError
from recuse.policy import Decision
from some_entries import some_facts

HOST = rec.Host("o/recuse/host/h/1", "h", "m", "b", "Debian", "0.1")
NOW = datetime(2026, 3, 4, 12, 0, tzinfo=timezone.utc)
NOW_NS = round(NOW.timestamp()) * 10**9
G = "01956f0e-0000-7000-8000-000000000001"


def request(**more: Any) -> gr.Request:
    asked = Asked(
        "alice", "alice", "h", "metadata", NOW, NOW + timedelta(hours=2), 2, "maintenance",
        "CHG-1", "index rebuild",
    )  # fmt: skip
    names = {field.name for field in dataclasses.fields(Asked)}
    asked = dataclasses.replace(asked, **{k: more.pop(k) for k in list(more) if k in names})
    return gr.Request(more.pop("id", G), b'{"v":1}\n', asked, 1000, 1000, **more)


def approval(principal: str = "bob@example.org", **more: Any) -> gr.Approval:
    digest = request().digest
    values: Dict[str, Any] = {"grant": G, "digest": digest, "principal": principal, **more}
    return gr.Approval(**{"method": "signature", **values})


FACTS = some_facts(host="h", tty=True, login_shell=True)


def decision(grant: Optional[str] = G) -> Decision:
    return Decision(
        "exempt", None, "grant", "maintenance", "bob", None, None, "p", (), FACTS, grant
    )


def session(name: str = "s-aaaaaaaaaaaaaaaa", at_ns: int = NOW_NS) -> rec.Session:
    login = rec.Login(
        "l-aaaaaaaaaaaaaaaa", "alice", 1000, None, None, "sshd", rec.Source(), None, None, 7, at_ns
    )
    return rec.Session(name, login, "shell", None, None, False, "/bin/sh", 8, at_ns, 0)


class Ledger:
    """Entries in order, as bytes; the clock moves by a second with each."""

    def __init__(self) -> None:
        self.raws: List[bytes] = []

    def add(self, build: Any, *arguments: Any, at_ns: Optional[int] = None, **more: Any) -> str:
        index = len(self.raws)
        time_ns = NOW_NS + index * 10**9 if at_ns is None else at_ns
        self.raws.append(build(HOST, index, time_ns, *arguments, **more))
        return f"{HOST.origin}:{index}"

    def fold(self) -> gr.GrantState:
        return gr.fold_grants(map(rec.parse, self.raws))

    def use(self, n: int, name: str, grant: str = G) -> None:
        use = {"n": n, "uses": 2}
        self.add(rec.exempt_entry, session(name), decision(grant), grant_use=use)


def granted(**more: Any) -> Ledger:
    ledger = Ledger()
    asked = request(**more)
    first = ledger.add(gr.request_entry, asked)
    second = ledger.add(gr.approval_entry, approval())
    ledger.add(gr.grant_entry, asked, "signature", "bob@example.org", first, [second])
    return ledger


def test_what_was_entered_is_read_back_whole() -> None:
    asked = request(
        source="192.0.2.0/24", allowance="dba", approvers=2, groups=("leads",), policy="p" * 64,
        end_sessions=True, imported=True, supervised=True, max_seconds=60,
    )  # fmt: skip
    ledger = Ledger()
    ledger.add(gr.request_entry, asked)
    word = approval(key="SHA256:x", key_type="ssh-ed25519", signature="-----\nabc\n", uid=0)
    ledger.add(gr.approval_entry, word)
    row = ledger.fold().rows[G]
    assert (row.request, row.approvals) == (asked, [word])


BUILT: Dict[str, Any] = {
    "request": lambda: gr.request_entry(HOST, 0, NOW_NS, request()),
    "approval": lambda: gr.approval_entry(HOST, 0, NOW_NS, approval()),
    "rejection": lambda: gr.end_entry(HOST, 0, NOW_NS, "rejection", G, "bob", 5, "no"),
    "revocation": lambda: gr.end_entry(HOST, 0, NOW_NS, "revocation", G, "bob", 5, ""),
    "grant": lambda: gr.grant_entry(HOST, 0, NOW_NS, request(), "pam", "bob", "o:1", ["o:2"]),
    "debt": lambda: gr.debt_entry(HOST, 0, NOW_NS, request(), NOW_NS, ["security"], b"{}"),
    "review": lambda: gr.review_entry(HOST, 0, NOW_NS, approval(), "fine"),
}


@pytest.mark.parametrize("kind", BUILT)
def test_each_kind_is_an_event_that_names_its_grant(kind: str) -> None:
    assert set(BUILT) == set(gr.KINDS)
    entry = rec.parse(BUILT[kind]())
    assert (entry.kind, entry.get("grant")) == (kind, G)
    assert entry.data["class_uid"] == 1008 and entry.data["metadata"]["correlation_uid"] == G
    assert gr.matters(BUILT[kind]()) and gr.GrantState().heeds(BUILT[kind]())


def test_what_is_signed_is_never_cut() -> None:
    big = dataclasses.replace(request(), raw=b"x" * (gr.MAX_REQUEST_BYTES + 1))
    with pytest.raises(LedgerError, match="too long"):
        gr.request_entry(HOST, 0, NOW_NS, big)
    with pytest.raises(LedgerError, match="too long"):
        gr.approval_entry(
            HOST, 0, NOW_NS, approval(signature="x" * (gr.MAX_SIGNATURE_BYTES + 1))
        )
    with pytest.raises(LedgerError, match="too long"):
        gr.request_entry(HOST, 0, NOW_NS, request(why="w" * 16384))
    raw = b'"' * gr.MAX_REQUEST_BYTES  # each takes two bytes in JSON
    entry = rec.parse(gr.request_entry(HOST, 0, NOW_NS, dataclasses.replace(request(), raw=raw)))
    assert (entry.get("request") or "").encode() == raw


def test_a_request_altered_in_the_ledger_is_none() -> None:
    ledger = granted()
    data = json.loads(ledger.raws[0])
    data["unmapped"]["recuse"]["request"] = '{"v":2}'
    ledger.raws[0] = json.dumps(data).encode()
    assert ledger.fold().rows == {}


def test_the_states_of_a_request() -> None:
    def state(ledger: Ledger, now: datetime = NOW) -> str:
        return ledger.fold().rows[G].state(now)

    pending = Ledger()
    pending.add(gr.request_entry, request())
    assert state(pending) == "pending"
    assert state(pending, NOW + timedelta(hours=2)) == "expired"
    assert state(granted()) == "granted"
    used = granted()
    used.use(1, "s-1")
    assert state(used) == "granted"
    used.use(2, "s-2")
    assert state(used) == "used"
    for kind, word in (("rejection", "rejected"), ("revocation", "revoked")):
        ended = granted()
        ended.add(gr.end_entry, kind, G, "bob", 5, "no")
        assert state(ended) == word
    renewed = granted()
    renewed.add(rec.start_entry, {"origin": "o", "size": 1, "root": ""}, "set back")
    assert state(renewed) == "void"


def test_a_use_counts_once_and_its_time_goes_to_the_budget() -> None:
    ledger = granted()
    ledger.use(1, "s-1")
    ledger.use(1, "s-1")
    assert ledger.fold().rows[G].left == 1
    late = NOW + timedelta(minutes=10)
    assert ledger.fold().standing("alice", "alice", late).used_seconds == 600
    ledger.add(
        rec.close_entry, session("s-1"), "exempt", "exempt", NOW_NS + 60 * 10**9, 0, 0, 0, None
    )
    assert ledger.fold().standing("alice", "alice", late).used_seconds == 60
    assert ledger.fold().standing("bob", "bob", late).used_seconds == 0
    april = NOW + timedelta(days=40)
    assert ledger.fold().standing("alice", "alice", april).used_seconds == 0


def test_a_use_with_a_number_left_out_counts_as_all_before_it() -> None:
    ledger = granted()
    ledger.use(2, "s-2")
    assert ledger.fold().rows[G].left == 0


def test_a_debt_is_overdue_until_it_is_reviewed() -> None:
    ledger = Ledger()
    due_ns = NOW_NS + 3600 * 10**9
    ledger.add(gr.debt_entry, request(), due_ns, ["security"], b"statement")
    debt = ledger.fold().debts[G]
    assert debt.statement == b"statement" and not debt.overdue(due_ns)
    late = NOW + timedelta(hours=2)
    assert ledger.fold().standing("alice", "helga", late).overdue == (G,)
    assert ledger.fold().standing("dave", "dave", late).overdue == ()
    ledger.add(gr.review_entry, approval("erin@example.org"))
    assert ledger.fold().standing("alice", "alice", late).overdue == ()
    assert ledger.fold().debts[G].reviewed_by == "erin@example.org"


STEPS = ("request", "grant", "end", "use", "close", "debt", "pay")


@given(st.data())
def test_what_counts_when_somebody_asks_is_what_all_entries_add_up_to(data: st.DataObject) -> None:
    ledger, people = Ledger(), ("alice", "bob")
    state = gr.GrantState()
    for step in range(data.draw(st.integers(0, 12))):
        kind = data.draw(st.sampled_from(STEPS))
        user, asker = data.draw(st.sampled_from(people)), data.draw(st.sampled_from(people))
        name = f"g-{data.draw(st.integers(0, 3))}"
        row = state.rows.get(name)
        if kind == "request":
            hours = timedelta(hours=data.draw(st.integers(0, 3)))
            asked = request(id=name, user=user, requester=asker, expires=NOW + hours)
            ledger.add(gr.request_entry, asked)
        elif kind == "debt":
            ledger.add(gr.debt_entry, request(id=name, user=user), NOW_NS, ["x"], b"{}")
        elif kind == "pay":
            ledger.add(gr.review_entry, approval(grant=name))
        elif kind == "grant" and row is not None:
            ledger.add(gr.grant_entry, row.request, "automatic", "", "", [])
        elif kind == "end":
            ledger.add(gr.end_entry, "revocation", name, "bob", 5, "")
        elif kind == "use":
            ledger.use(data.draw(st.integers(1, 2)), f"s-{step}", name)
        elif kind == "close":
            told = session(f"s-{data.draw(st.integers(0, 12))}")
            ledger.add(rec.close_entry, told, "exempt", "exempt", NOW_NS + 10**10, 0, 0, 0, None)
        else:
            continue
        state.apply(rec.parse(ledger.raws[-1]))
        now = NOW + timedelta(minutes=60 * data.draw(st.integers(0, 2)) + 1)
        now_ns = round(now.timestamp()) * 10**9
        found = state.standing(user, asker, now)
        rows = state.rows.values()
        assert found.pending == sum(
            one.state(now) == "pending" and one.request.asked.requester == asker for one in rows
        )
        assert found.overdue == tuple(sorted(
            one.id for one in state.debts.values()
            if one.user in (user, asker) and one.overdue(now_ns)
        ))  # fmt: skip
        going = sum(
            (now_ns - use.started_ns) / 1e9
            for one in rows if one.request.asked.user == user
            for use in one.uses.values() if use.ended_ns is None
        )  # fmt: skip
        assert found.used_seconds == pytest.approx(state.used.get((user, "2026-03"), 0.0) + going)
        assert state.overdue(user, now_ns) == any(
            one.user == user and one.overdue(now_ns) for one in state.debts.values()
        )


def test_no_more_than_some_requests_that_wait_are_counted() -> None:
    state, first = gr.GrantState(), json.loads(BUILT["request"]())
    count = 5000
    for n in range(count):
        first["unmapped"]["recuse"]["grant"] = f"g-{n}"
        state.apply(rec.parse(json.dumps(first).encode()))
    assert state.standing("alice", "alice", NOW).pending == gr.MAX_COUNTED
    assert len(state.rows) == count


def test_the_floor_is_where_what_still_matters_begins() -> None:
    ledger = Ledger()
    ledger.add(rec.heartbeat_entry, 0)
    assert ledger.fold().floor(NOW) is None
    ledger.add(gr.request_entry, request())
    assert ledger.fold().floor(NOW) == 1
    assert ledger.fold().floor(NOW + timedelta(hours=3)) is None
    ledger.add(gr.debt_entry, request(id="g2"), NOW_NS, ["security"], b"")
    assert ledger.fold().floor(NOW + timedelta(hours=3)) == 2


@given(
    st.sampled_from(gr.KINDS),
    st.dictionaries(
        st.sampled_from(["grant", "request", "digest", "user", "uid", "expires", "n", "due"]),
        st.one_of(st.none(), st.integers(), st.text(max_size=8), st.lists(st.integers())),
    ),
)
def test_an_entry_that_makes_no_sense_changes_nothing(kind: str, ours: Dict[str, Any]) -> None:
    state = granted().fold()
    before = state.rows[G].to_json(NOW)
    data = json.loads(BUILT["request"]())
    fields = {**ours, "kind": kind, "grant": ours.get("grant", "other")}
    data["unmapped"]["recuse"], data["metadata"]["event_code"] = fields, kind
    state.apply(rec.parse(json.dumps(data).encode()))
    assert state.rows[G].to_json(NOW) == before


class Life(RuleBasedStateMachine):
    """A grant's life; the state is folded anew from the bytes at every point, as after a crash."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.first = self.ledger.add(gr.request_entry, request(approvers=2))
        self.approved: List[str] = []
        self.sessions = 0

    @property
    def row(self) -> gr.GrantRow:
        return self.ledger.fold().rows[G]

    @precondition(lambda self: len(self.approved) < 2)
    @rule()
    def approve(self) -> None:
        self.approved.append(self.ledger.add(gr.approval_entry, approval(str(self.sessions))))

    @precondition(lambda self: len(self.approved) == 2)
    @rule()
    def grant(self) -> None:
        self.ledger.add(gr.grant_entry, request(), "signature", "bob", self.first, self.approved)

    @precondition(lambda self: self.row.state(NOW) == "granted")
    @rule()
    def use(self) -> None:
        self.sessions += 1
        self.ledger.use(self.row.taken + 1, f"s-{self.sessions}")

    @rule()
    def revoke(self) -> None:
        self.ledger.add(gr.end_entry, "revocation", G, "bob", 5, "")

    @invariant()
    def no_use_without_quorum_nor_beyond_what_was_granted(self) -> None:
        row = self.row
        assert len(row.uses) == self.sessions <= row.request.asked.uses
        if row.uses:
            assert len(row.approvals) >= row.request.approvers
        step = gr.GrantState()
        for raw in self.ledger.raws:
            if step.heeds(raw):
                step.apply(rec.parse(raw))
        assert step.rows[G].to_json(NOW) == row.to_json(NOW)


TestLife = Life.TestCase
