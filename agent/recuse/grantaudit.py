"""Whether the exemptions of a ledger are covered by the grants that it names.

Pure. Entries come in order; of each, what is wrong with it by what was entered before. Nothing of
what the host concluded is taken over: requests are read anew, signatures checked, uses counted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Dict, List, Optional, Sequence, Set, Tuple

from recuse import amounts
from recuse.approval import (
    LEVELS,
    ApprovalPolicy,
    Asked,
    Standing,
    check_claimed,
    check_claimed_glass,
)
from recuse.errors import CryptoError, LedgerError
from recuse.grant import (
    GrantFault,
    Terms,
    Wanted,
    account_of,
    check_grant,
    is_from,
    namespace_in,
    namespace_of,
    read_request,
)
from recuse.grantrecords import KINDS, GrantRow, GrantState
from recuse.records import Entry, format_time, parse_time
from recuse.signedsteps import SignedSteps
from recuse.sshsig import AllowedSigners, RevokedKeys

LEEWAY_NS = 60 * 10**9
"""How much longer than granted a session may last until it is ended."""


Claim = Tuple[int, Tuple[str, ...], str]
"""How many approvers, from which groups, and the digest of the approval policy that says so."""


@dataclass(frozen=True)
class _Session:
    """A session that a grant exempts."""

    grant: str
    started_ns: int


class GrantAudit:
    """Grants as the entries so far tell them, and what is wrong with their use."""

    def __init__(
        self,
        signers: Optional[AllowedSigners] = None,
        revoked: Optional[RevokedKeys] = None,
        policies: Sequence[ApprovalPolicy] = (),
    ) -> None:
        """`policies` are those that were in force, the newest last: without one, how many had to
        approve is the host's word."""
        self._signers = signers
        self._revoked = revoked
        self._policies = {one.digest: one for one in policies}
        self._newest = policies[-1] if policies else None
        self._signed = SignedSteps(signers, revoked)
        self._state = GrantState()
        self._sessions: Dict[str, _Session] = {}
        self._pauses: Dict[str, _Session] = {}
        self._revoked_ns: Dict[str, int] = {}
        self._standing: Dict[str, Standing] = {}  # of who asked, as it was when they did
        self.checked = 0  # uses
        self.unchecked = self._signed.unchecked
        """Grants that rest on signatures, which could not be checked without signers."""
        self.unsigned = self._signed.unsigned
        """Grants of whose approval there is just the host's word, and how they came about."""
        self.claimed: Dict[Claim, Set[str]] = {}
        """Grants that were held against no policy, by what the host says was asked of them."""
        self.other_files: Dict[str, Set[str]] = {}
        """Grants made by another file of approvers than these signers are in, by its digest."""

    def read(self, entry: Entry) -> List[GrantFault]:
        """Take in the next entry; say what is wrong with it."""
        found: List[GrantFault] = []
        if entry.kind in ("exempt", "open", "pause"):
            found = self._read_use(entry)
        elif entry.kind == "resume":
            found = self._read_resume(entry)
        elif entry.kind == "close":
            found = self._read_close(entry)
        self._state.apply(entry)
        if entry.kind in KINDS and "carried" not in entry.ours:
            found = self._read_step(entry)
        return found

    def doubts(self, now_ns: Optional[int]) -> List[Tuple[str, GrantFault]]:
        """Say what may be wrong, or still has to be done, each with what it is about.

        Without `now_ns` the time is that of the newest entry.
        """
        at_ns = self._state.newest_ns if now_ns is None else now_ns
        found = list(self._signed.doubts)
        for debt in self._signed.owed.values():
            if at_ns > debt.due_ns:
                told = f"its review is overdue since {format_time(debt.due_ns)}: {debt.user}"
                found.append((f"debt {debt.id}", GrantFault("debt-overdue", told)))
        for (approvers, groups, policy), grants in sorted(self.claimed.items()):
            told = (
                f"took {amounts.number(approvers, 'approver')} from "
                f"{', '.join(groups) or 'nowhere'} for {amounts.number(len(grants), 'grant')}: "
                "the host's word, no such policy was given"
            )
            about = f"approval policy {policy[:16] or 'unknown'}"
            found.append((about, GrantFault("grant-policy-unchecked", told)))
        for digest, grants in sorted(self.other_files.items()):
            told = f"made {amounts.number(len(grants), 'grant')}, and is not the one given"
            found.append(
                (f"file of approvers {digest[:16]}", GrantFault("grant-approvers", told))
            )
        return found

    # Steps towards a grant

    def _read_step(self, entry: Entry) -> List[GrantFault]:
        grant, uid = entry.get("grant") or "", f"{entry.origin}:{entry.index}"
        row, kind = self._state.rows.get(grant), entry.kind
        policy = self._policy_of(row)
        if kind in ("debt", "review"):
            debt = self._state.debts.get(grant)
            if debt is None:
                return [GrantFault("grant-entry", f"{kind} of nothing that is known")]
            if kind == "debt":
                return self._signed.read_debt(entry, debt, row, policy)
            return self._signed.read_review(entry, row, policy)
        if row is None:
            return [GrantFault("grant-entry", f"{kind} of no request that can be read")]
        if kind == "request":
            return self._read_request(entry, row)
        if kind == "approval" and uid not in row.approval_entries:
            return [GrantFault("grant-entry", "approval of another request, or of none")]
        if kind == "grant" and row.grant_entry != uid:
            return [GrantFault("grant-entry", "grant of another request, or granted before")]
        if kind in ("revocation", "rejection"):
            self._revoked_ns.setdefault(grant, entry.time_ns)
            return self._signed.read_end(entry, row, policy)
        if kind == "approval":
            return self._signed.read_approval(entry, row)
        return [*_compare_grant(entry, row), *self._read_grant(row)]

    def _policy_of(self, row: Optional[GrantRow]) -> Optional[ApprovalPolicy]:
        """Find what a request is held against: what the host names if it was given, else the
        newest that was."""
        return self._policies.get(row.request.policy or "" if row else "", self._newest)

    def _read_grant(self, row: GrantRow) -> List[GrantFault]:
        used, named = row.basis.approvers_file, row.request.policy or ""
        if self._signers is not None and used not in (None, self._signers.digest):
            self.other_files.setdefault(used or "", set()).add(row.id)
        if not self._policies:
            claim = row.request.approvers, row.request.groups, named
            self.claimed.setdefault(claim, set()).add(row.id)
        found: List[GrantFault] = []
        for digest in sorted({named, row.basis.policy or named}):
            if self._policies and digest not in self._policies:
                told = f"by approval policy {digest[:16] or 'unknown'}, none of those given"
                found.append(GrantFault("grant-policy", told))
        policy = self._policy_of(row)
        if policy is not None:
            found += self._check_claim(row, policy)
        return found

    def _check_claim(self, row: GrantRow, policy: ApprovalPolicy) -> List[GrantFault]:
        """Hold a grant against what may be asked for, and what the host says that it takes."""
        request = row.request
        at = datetime.fromtimestamp(row.asked_ns // 10**9, timezone.utc)
        if row.method == "break-glass":
            against = check_claimed_glass(request.asked, policy, request.uid, at)
            return [GrantFault("grant-policy", one.message) for one in against]
        standing = self._standing.get(row.id, Standing())
        uids = request.uid, request.requester_uid
        against = check_claimed(request.asked, request.allowance or "", policy, uids, standing, at)
        found = [GrantFault("grant-policy", one.message) for one in against]
        one = policy.allowance(row.request.allowance)
        if one is None:
            return found
        if request.approvers < one.approvers:
            told = (
                f"the host asked for {amounts.number(request.approvers, 'approver')}, "
                f"and it takes {one.approvers}"
            )
            found.append(GrantFault("grant-policy", told))
        others = sorted(set(request.groups) - set(one.groups))
        if others:
            told = f"the host let approvers be from {', '.join(others)}, which may not approve it"
            found.append(GrantFault("grant-policy", told))
        if one.end_sessions and not request.end_sessions:
            told = "sessions had to end with it, and the host says they need not"
            found.append(GrantFault("grant-policy", told))
        return found

    def _read_request(self, entry: Entry, row: GrantRow) -> List[GrantFault]:
        if row.seq != entry.index:
            return [GrantFault("grant-entry", "there was a request of that id before")]
        asked, at = row.request.asked, datetime.fromtimestamp(row.asked_ns // 10**9, timezone.utc)
        self._standing[row.id] = self._state.standing(asked.user, asked.requester, at)
        fault = _compare(row, entry.origin)
        return [] if fault is None else [GrantFault("grant-request", fault)]

    # Uses

    def _read_use(self, entry: Entry) -> List[GrantFault]:
        grant, session = entry.get("grant"), entry.get("session") or ""
        use, is_pause = entry.ours.get("grant_use"), entry.kind == "pause"
        if (grant is None or is_pause) and use is None:
            return []
        before = self._sessions.get(session)
        if not is_pause and before is not None and before.grant == grant:
            return []  # entered anew, in a later epoch
        if not isinstance(use, dict) or grant is None:
            return [GrantFault("grant-uses", "the use of a grant, and it is not counted")]
        try:
            started_ns = entry.time_ns if is_pause else parse_time(entry.get("started") or "")
        except LedgerError:
            return [GrantFault("grant-window", "it is not known when it began")]
        going = self._pauses if is_pause else self._sessions
        going[session] = _Session(grant, started_ns)
        self.checked += 1
        row = self._state.rows.get(grant)
        if row is None:
            return [GrantFault("grant-unknown", f"no entry has a request {grant!r:.60}")]
        found = self._check_state(row, use, session, is_pause)
        found += self._check_fit(row, entry, started_ns)
        found += self._check_approvals(row, entry.origin, started_ns)
        found += [
            GrantFault("grant-debt", f"the review of {debt} was overdue")
            for debt in self._signed.overdue(row.request.asked.user, started_ns)
        ]
        return found

    def _check_state(
        self, row: GrantRow, use: Dict[str, object], session: str, is_pause: bool
    ) -> List[GrantFault]:
        found: List[GrantFault] = []

        def fault(code: str, message: str) -> None:
            found.append(GrantFault(code, message))

        n, uses = use.get("n"), row.request.asked.uses
        if type(n) is not int or n < 1:
            fault("grant-uses", "it does not say which use of the grant it is")
        elif n in row.uses and (is_pause or row.uses[n].session != session):
            fault("grant-uses", f"use {n} of {row.id} was that of {row.uses[n].session} before")
        elif n > uses or len(row.uses) >= uses:
            fault("grant-uses", f"use {max(n, len(row.uses) + 1)} of a grant for {uses}")
        for key, wanted in (
            ("digest", row.request.digest),
            ("request_entry", row.entry),
            ("grant_entry", row.grant_entry),
            ("approval_entries", row.approval_entries),
        ):
            if use.get(key) != wanted:
                fault("grant-request", f"it names another {key} than the entries of {row.id}")
        if row.granted_ns is None:
            fault("grant-quorum", f"{row.id} had not been granted")
        if row.revoked_by is not None or row.rejected_by is not None:
            who = row.revoked_by or row.rejected_by
            fault("grant-revoked", f"{row.id} had been ended by {who} before")
        if row.void:
            fault("grant-void", f"{row.id} was made before this ledger followed another")
        return found

    def _check_fit(self, row: GrantRow, entry: Entry, started_ns: int) -> List[GrantFault]:
        found: List[GrantFault] = []

        def fault(code: str, message: str) -> None:
            found.append(GrantFault(code, message))

        asked = row.request.asked
        device = entry.data.get("device")
        host = device.get("hostname") if isinstance(device, dict) else None
        if not isinstance(host, str) or host.lower() != asked.host.lower():
            fault("grant-host", f"on host {host!r:.60}, and {row.id} is for {asked.host}")
        user, uid = entry.get("user"), entry.number("uid")
        if (user, uid) != (asked.user, row.request.uid):
            fault("grant-user", f"of {user} (uid {uid}), and {row.id} is for {asked.user}")
        wanted = row.request.source
        if wanted is not None and not is_from(entry.get("source"), wanted):
            fault("grant-source", f"from {entry.get('source')}, and {row.id} is for {wanted}")
        if not _ns(asked.not_before) <= started_ns < _ns(asked.expires):
            fault("grant-window", f"at another time than {row.id} is for")
        elif "carried" not in entry.ours and entry.time_ns > _ns(asked.expires) + LEEWAY_NS:
            late = (entry.time_ns - _ns(asked.expires)) // 10**9
            fault("grant-window", f"entered {late} s after the end of {row.id}")
        scope = "pause" if entry.kind == "pause" else "session"
        if scope != asked.scope:
            fault("grant-scope", f"a {scope}, and {row.id} is for a {asked.scope}")
        if scope == "pause":
            return found
        for key, what in (("owner", row.owner), ("reason_code", asked.reason)):
            if entry.get(key) != what:
                fault("grant-request", f"it names another {key} than the grant {row.id}")
        level = entry.get("level")
        if _keeps(level) < _keeps(asked.level):
            fault("grant-level", f"keeps {level}, and {row.id} asks for {asked.level}")
        if asked.supervised and entry.ours.get("supervised") is not True:
            fault("grant-level", f"not supervised, and {row.id} is only for supervised sessions")
        return found

    def _check_approvals(self, row: GrantRow, origin: str, at_ns: int) -> List[GrantFault]:
        fault = _compare(row, origin)
        if fault is not None:
            return [GrantFault("grant-request", fault)]
        if row.method == "break-glass":
            self.unsigned[row.id] = "broken glass"
            if row.id not in self._state.debts:
                return [GrantFault("grant-debt", f"{row.id} broke the glass and owes no review")]
            return []
        policy = self._policy_of(row)
        one = None if policy is None else policy.allowance(row.request.allowance)
        many = max(row.request.approvers, one.approvers if one is not None else 0)
        if row.method == "automatic":
            self.unsigned[row.id] = "approved automatically"
            if many:
                return [
                    GrantFault(
                        "grant-quorum",
                        f"automatic, and {amounts.number(many, 'approver')} needed",
                    )
                ]
            return []
        signed = [one for one in row.approvals if one.method == "signature"]
        local = any(one.method == "pam" for one in row.approvals)
        if local:
            self.unsigned[row.id] = "approved by password"
        if self._signers is None and signed:
            self.unchecked.add(row.id)
            return []
        at = datetime.fromtimestamp(at_ns // 10**9, timezone.utc)
        terms, accounts = Terms(max(1, many), local=local), account_of
        if policy is not None and one is not None:
            terms = replace(
                terms, principals=policy.principals(one.groups), key_types=one.key_types,
                verification=one.verification, local=one.local, origins=policy.origins,
            )  # fmt: skip
            accounts = policy.accounts_of
        checked = check_grant(
            row.request, row.approvals, self._signers, terms, namespace_in(origin), at,
            self._revoked, accounts,
        )  # fmt: skip
        if checked.enough:
            return []
        return [GrantFault("grant-quorum", f"of {row.id} {checked.shortfall}")]

    def _read_resume(self, entry: Entry) -> List[GrantFault]:
        known = self._pauses.pop(entry.get("session") or "", None)
        return [] if known is None else self._check_length(known, entry.time_ns, "paused")

    def _read_close(self, entry: Entry) -> List[GrantFault]:
        known = self._sessions.get(entry.get("session") or "")
        if known is None or entry.get("outcome") != "exempt":
            return []
        try:
            ended_ns = parse_time(entry.get("ended") or "")
        except LedgerError:
            return []
        return self._check_length(known, ended_ns, "exempt")

    def _check_length(self, known: _Session, ended_ns: int, how: str) -> List[GrantFault]:
        row = self._state.rows.get(known.grant)
        if row is None:
            return []
        asked, ends = row.request.asked, []
        if asked.max_seconds is not None:
            ends.append((known.started_ns + asked.max_seconds * 10**9, "its longest"))
        if row.request.end_sessions or asked.scope == "pause":
            ends.append((_ns(asked.expires), "its end"))
        if row.id in self._revoked_ns:
            ends.append((self._revoked_ns[row.id], "its revocation"))
        return [
            GrantFault("grant-overrun", f"{how} {(ended_ns - end) // 10**9} s beyond {what}")
            for end, what in ends
            if ended_ns > end + LEEWAY_NS
        ]


def _compare(row: GrantRow, origin: str) -> Optional[str]:
    """Say in what an entry differs from the request that stands in it; None if it does not."""
    try:
        wanted: Wanted = read_request(row.request.raw)
    except CryptoError as error:
        return f"the request of {row.id} is none: {error.message}"
    if namespace_of(wanted.org) != namespace_in(origin):
        return f"{row.id} is for organisation {wanted.org!r:.60}"
    entered: Tuple[str, Asked, int, Optional[str]] = (
        row.id, row.request.asked, row.request.uid, row.request.source,
    )  # fmt: skip
    if entered != (wanted.id, wanted.asked, wanted.uid, wanted.source):
        return f"the entry of {row.id} says something else than its request"
    return None


def _compare_grant(entry: Entry, row: GrantRow) -> List[GrantFault]:
    """Say in what a grant differs from what it rests on."""
    asked, found = row.request.asked, []
    people = {one.principal for one in row.approvals}
    owners = (entry.get("owner") or "").split(", ")
    if row.method in ("signature", "pam") and not people.issuperset(owners):
        found.append(GrantFault("grant-quorum", "its owner is not who approved the request"))
    for key, wanted in (
        ("user", asked.user), ("uid", row.request.uid), ("requester", asked.requester),
        ("reason", asked.reason), ("level", asked.level), ("uses", asked.uses),
        ("expires", format_time(_ns(asked.expires))), ("request_entry", row.entry),
        ("approval_entries", row.approval_entries),
    ):  # fmt: skip
        if entry.ours.get(key) != wanted:
            found.append(GrantFault("grant-request", f"its {key} is not that of the request"))
    return found


def _keeps(level: Optional[str]) -> int:
    """Order levels by how much they keep; more than can be asked for comes last."""
    if level == "full":
        return len(LEVELS)
    return LEVELS.index(level) if level in LEVELS else -1


def _ns(time: datetime) -> int:
    return round(time.timestamp()) * 10**9
