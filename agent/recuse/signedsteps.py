"""Whether what a ledger keeps as signed was signed, by whom it says: approvals, ends and reviews.

Pure; part of the audit of grants (grantaudit).
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timezone
from itertools import islice
from typing import Callable, Dict, FrozenSet, List, Optional, Set, Tuple

from recuse import mail, sshsig
from recuse.approval import LEEWAY, ApprovalPolicy
from recuse.errors import CryptoError
from recuse.grant import GrantFault, account_of, namespace_in, namespace_of
from recuse.grantrecords import MAX_COUNTED, Debt, GrantRow
from recuse.records import Entry
from recuse.sshsig import AllowedSigners, RevokedKeys, SignatureRefused, Signed

_LEEWAY_NS = round(LEEWAY.total_seconds()) * 10**9


class SignedSteps:
    """What was signed so far, and which reviews are owed."""

    def __init__(self, signers: Optional[AllowedSigners], revoked: Optional[RevokedKeys]) -> None:
        self._signers = signers
        self._revoked = revoked
        self._counters: Dict[bytes, Tuple[int, bytes]] = {}  # of a key: the highest, and by what
        self.owed: Dict[str, Debt] = {}
        """Debts without a review that holds."""
        self._owed_by: Dict[str, Dict[str, Debt]] = {}
        self.unchecked: Set[str] = set()
        """What was signed, it is not known by whom, without signers."""
        self.unsigned: Dict[str, str] = {}
        """What there is just the host's word for, and what that is."""
        self.doubts: List[Tuple[str, GrantFault]] = []
        """What may be wrong and need not be, each with what it is about."""

    # Approvals

    def read_approval(self, entry: Entry, row: GrantRow) -> List[GrantFault]:
        """Look at an approval by itself; whether it counts, each use of the grant asks."""
        if entry.get("method") != "signature":
            return []
        try:
            self._read_signature(entry, row.request.raw)
        except SignatureRefused as error:
            return [GrantFault("grant-signature", error.message)]
        return self._read_counter(entry)

    @staticmethod
    def _read_signature(entry: Entry, raw: bytes) -> sshsig.SshSignature:
        """Check that the signature of an entry is one over these bytes. Raises: SignatureRefused"""
        found = sshsig.SshSignature.parse((entry.get("signature") or "").encode())
        found.check(raw)
        if entry.get("key") not in (None, found.key.fingerprint):
            raise SignatureRefused("altered", f"it was signed with {found.key.fingerprint}")
        return found

    def _read_counter(self, entry: Entry) -> List[GrantFault]:
        """See that a security key counts on; those that do not count say 0 each time."""
        armored = (entry.get("signature") or "").encode()
        found = sshsig.SshSignature.parse(armored)
        if found.counter is None:
            return []
        last, before = self._counters.get(found.key.material, (0, b""))
        if found.counter > last:
            self._counters[found.key.material] = found.counter, armored
            return []
        if last == 0 or armored == before:
            return []
        told = f"key {found.key.fingerprint} counts {found.counter} after {last}"
        if found.counter == last:
            return [GrantFault("key-counter", f"{told}: there are two of it")]
        doubt = GrantFault(
            "key-counter", f"{told}: there are two of it, or what was signed first came later"
        )
        self.doubts.append((f"entry {entry.index} ({entry.kind})", doubt))
        return []

    def _verify(
        self, entry: Entry, raw: bytes, policy: Optional[ApprovalPolicy]
    ) -> Optional[Signed]:
        """Say who signed something when it was entered; None if that cannot be said without
        signers. Raises: SignatureRefused"""
        self._read_signature(entry, raw)
        if self._signers is None:
            self.unchecked.add(entry.get("grant") or "")
            return None
        at = datetime.fromtimestamp(entry.time_ns // 10**9, timezone.utc)
        armored = (entry.get("signature") or "").encode()
        return sshsig.verify(
            raw, armored, self._signers, namespace_in(entry.origin), at, self._revoked,
            policy.origins if policy is not None else (),
        )  # fmt: skip

    def _names(self, signed: Signed) -> FrozenSet[str]:
        assert self._signers is not None
        return frozenset(signed.principals) | self._signers.holders(signed.key)

    # Ends

    def read_end(
        self, entry: Entry, row: GrantRow, policy: Optional[ApprovalPolicy]
    ) -> List[GrantFault]:
        """Look at a rejection or revocation; of one that came unsigned there is the host's word."""
        if all(entry.get(name) is None for name in ("statement", "signature", "key")):
            return []
        by, raw = entry.get("by") or "", (entry.get("statement") or "").encode()
        try:
            told = mail.read_statement(raw)
            about = told.grant, namespace_of(told.org), told.digest
            if about != (row.id, namespace_in(entry.origin), row.request.digest):
                raise CryptoError("what was signed is about another request")
            signed = self._verify(entry, raw, policy)
            if signed is not None:
                self._check_ender(by, signed, row, policy)
        except CryptoError as error:
            return [GrantFault("grant-end", f"by {by!r:.60}: {error.message}")]
        return self._read_counter(entry)

    def _check_ender(
        self, by: str, signed: Signed, row: GrantRow, policy: Optional[ApprovalPolicy]
    ) -> None:
        if by not in signed.principals:
            raise CryptoError(f"it was signed by {signed.principals[0]}")
        if policy is None:
            return
        names, people = self._names(signed), _people(row)
        if names & policy.principals(tuple(policy.groups)):
            return
        if not people & _accounts(names, policy.accounts_of):
            raise CryptoError("they neither approve anything nor asked for it")

    # Reviews

    def read_debt(
        self, entry: Entry, debt: Debt, row: Optional[GrantRow], policy: Optional[ApprovalPolicy]
    ) -> List[GrantFault]:
        """Take in what is owed, and by when."""
        if debt.id in self.owed:
            del self._owed_by[self.owed[debt.id].user][debt.id]
        self.owed[debt.id] = debt
        self._owed_by.setdefault(debt.user, {})[debt.id] = debt
        try:
            told = mail.read_review(debt.statement)
        except CryptoError as error:
            return [GrantFault("grant-debt", f"{debt.id}: {error.message}")]
        asked = None if row is None else row.request
        wanted = None if asked is None else mail.Review(
            debt.id, told.org, asked.asked.host, asked.asked.user, asked.digest, asked.asked.why
        )  # fmt: skip
        if told != wanted or namespace_of(told.org) != namespace_in(entry.origin):
            return [GrantFault("grant-debt", f"{debt.id}: its reviewer signs something else")]
        if debt.user != told.user:
            return [GrantFault("grant-debt", f"{debt.id} is owed by another than {told.user}")]
        glass = None if policy is None else policy.break_glass
        if row is None or glass is None:
            return []
        if not set(debt.reviewers) <= set(glass.reviewers):
            who = ", ".join(sorted(set(debt.reviewers) - set(glass.reviewers)))
            return [GrantFault("grant-policy", f"{who} may not review by the approval policy")]
        if debt.due_ns > row.asked_ns + glass.review_seconds * 10**9 + _LEEWAY_NS:
            return [GrantFault("grant-policy", "it is due later than by the approval policy")]
        return []

    def read_review(
        self, entry: Entry, row: Optional[GrantRow], policy: Optional[ApprovalPolicy]
    ) -> List[GrantFault]:
        """Look at a review: one that does not hold leaves the debt as it was."""
        debt = self.owed.get(entry.get("grant") or "")
        if debt is None:
            return [GrantFault("grant-entry", "review of what was reviewed before")]
        try:
            if entry.get("digest") != hashlib.sha256(debt.statement).hexdigest():
                raise CryptoError("it is of something else than what was to be signed")
            self._check_review(entry, debt, row, policy)
        except CryptoError as error:
            by = entry.get("principal") or ""
            return [GrantFault("grant-review", f"of {debt.id} by {by!r:.60}: {error.message}")]
        del self.owed[debt.id], self._owed_by[debt.user][debt.id]
        return self._read_counter(entry) if entry.get("method") == "signature" else []

    def _check_review(
        self,
        entry: Entry,
        debt: Debt,
        row: Optional[GrantRow],
        policy: Optional[ApprovalPolicy],
    ) -> None:
        """Raises: CryptoError"""
        principal, method = entry.get("principal") or "", entry.get("method")
        names = frozenset({principal})
        if method == "signature":
            signed = self._verify(entry, debt.statement, policy)
            if signed is not None:
                if principal not in signed.principals:
                    raise CryptoError(f"it was signed by {signed.principals[0]}")
                names = self._names(signed)
        elif method == "pam":
            self.unsigned[debt.id] = "broken glass, reviewed by password"
            if policy is not None and not (policy.break_glass and policy.break_glass.local):
                raise CryptoError("a password does not count by the approval policy")
        else:
            raise CryptoError("it is not signed")
        people = frozenset({debt.user}) | (_people(row) if row is not None else frozenset())
        if people & _accounts(names, policy.accounts_of if policy is not None else account_of):
            raise CryptoError("nobody reviews their own")
        if policy is not None and principal not in policy.principals(debt.reviewers):
            raise CryptoError("they are in none of the groups that review")

    def overdue(self, user: str, at_ns: int) -> List[str]:
        """Name the reviews that somebody owed at a time, and that were late; of many, the first."""
        late = (
            debt.id
            for debt in self._owed_by.get(user, {}).values()
            if at_ns > debt.due_ns + _LEEWAY_NS
        )
        return sorted(islice(late, MAX_COUNTED))


def _people(row: GrantRow) -> FrozenSet[str]:
    return frozenset({row.request.asked.user, row.request.asked.requester})


def _accounts(
    names: FrozenSet[str], accounts_of: Callable[[str], FrozenSet[str]]
) -> FrozenSet[str]:
    return frozenset(account for name in names for account in accounts_of(name))
