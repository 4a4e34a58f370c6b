"""Where exemptions are asked for, approved, used and ended.

Part of the agent. What it knows is the fold of the ledger (grantrecords), taken in entry by entry
as they become durable: nothing takes effect that is not entered, and a crash at any point leaves
what the entries say. Every step is also told to the journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import (
    TYPE_CHECKING,
    Any,
    Dict,
    FrozenSet,
    List,
    Mapping,
    Optional,
    Sequence,
    Set,
    Union,
)

from . import fields, files, grantrecords, mail, records
from .approval import (
    MAX_AHEAD,
    MAX_PENDING,
    Allowance,
    ApprovalPolicy,
    Asked,
    judge,
    judge_break_glass,
)
from .approvers import Approvers, Signed, Unusable
from .errors import (
    AccessDenied,
    GrantError,
    LedgerError,
    NotFound,
    PauseError,
    RecuseError,
)
from .grant import Checked, is_from
from .grant import Terms as TermsOfApproval
from .grantrecords import Approval, Debt, GrantRow, GrantState, Request, SignedEnd
from .host import Account, Identity
from .ledger import LedgerReader
from .live import LiveSession
from .outcomes import Outcomes
from .passwords import Passwords
from .policy import Facts, Grant, Terms

if TYPE_CHECKING:
    from .agent import Agent

CLOCK_TOLERANCE_NS = 60 * 10**9  # that time synchronisation may set the clock back
NEWEST_READ = 512  # entries at the end of the ledger whose times are looked at
MAX_ROWS = 500
MAX_ASKED = 60  # by one user, of what is entered or told to the journal
ASKED_SPELL_NS = 600 * 10**9
CHECK_SECONDS = 60.0  # timers look at the clock this often: it may be set
LEAST_SECONDS = 0.05  # between two looks
WITHDRAWN = frozenset({"grant-revoked", "grant-expired"})  # flags of sessions no longer exempt


@dataclass(frozen=True)
class Caller:
    """Who asks, by the kernel."""

    uid: int  # of who became root, that of who they are
    account: Account
    groups: tuple  # type: ignore[type-arg]
    is_root: bool = False

    @property
    def name(self) -> str:
        return self.account.name


@dataclass(frozen=True)
class PauseOffer:
    """A grant by which a recording may be paused."""

    grant: str
    reason: str
    ticket: Optional[str]
    seconds: int


@dataclass(frozen=True)
class Use:
    """A use that is set aside for one session until its entry is durable."""

    grant: str
    n: int


class Desk:
    """Requests, grants and debts of this host."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._book = agent.book
        self._journal = agent.journal
        self._kernel = agent.kernel
        self.state = GrantState()
        self.approvers = Approvers(agent.paths, lambda: self.policy)
        self._taken: Set[Use] = set()
        self._asked: Dict[int, List[int]] = {}  # uid -> when
        self._passwords = Passwords(agent.kernel)
        self._granting = asyncio.Lock()
        self._timer: Optional[asyncio.TimerHandle] = None
        self._overdue_told: Set[str] = set()
        self._outcomes = Outcomes(agent.paths.state / "outcomes-told")
        agent.book.on_entry.append(self._take_in)

    # -- what the ledger says --------------------------------------------------------

    @property
    def policy(self) -> ApprovalPolicy:
        return self._agent.upkeep.approval

    def load(self) -> None:
        """Fold what earlier epochs and this one say."""
        paths, book = self._agent.paths, self._book
        for path in sorted(paths.state.glob("ledger.*"), key=lambda one: _epoch_of(one.name)):
            with contextlib.suppress(RecuseError, OSError):
                for raw in LedgerReader(path).entries():
                    self._fold(raw)
        size = book.size
        floor = min(self._floor(), size)
        for raw in book.ledger.entries(floor):
            self._fold(raw)
        if size:
            if floor:
                self._fold(next(iter(book.ledger.entries(0, 1))))
            for raw in book.ledger.entries(max(0, size - NEWEST_READ)):
                with contextlib.suppress(LedgerError):
                    self.state.see_time(records.parse(raw).time_ns)
        self.keep_floor()

    def _floor(self) -> int:
        """Say from where on entries matter; root may change that, as it may the ledger's files."""
        origin = self._book.host.origin
        try:
            told, _, number = (self._agent.paths.state / "grants-from").read_text().partition(" ")
            return int(number) if told == origin else 0
        except (OSError, ValueError):
            return 0

    def keep_floor(self) -> None:
        """Note from where the next start has to read; an older note only costs it time."""
        floor = self.state.floor(self._kernel.now())
        if floor is None:
            floor = self._book.size
        told = f"{self._book.host.origin} {floor}".encode()
        with contextlib.suppress(OSError):
            files.replace(self._agent.paths.state / "grants-from", told, durable=False)

    def _fold(self, raw: bytes) -> None:
        if self.state.heeds(raw):
            with contextlib.suppress(LedgerError):
                self.state.apply(records.parse(raw))

    def _take_in(self, raw: bytes, time_ns: int) -> None:
        """Hear of an entry that is durable."""
        self.state.see_time(time_ns)
        self._fold(raw)

    async def resume(self) -> None:
        """Finish what a crash cut off, and look after the sessions that grants exempt."""
        for row in list(self.state.rows.values()):
            if row.state(self._kernel.now()) == "pending":
                await self._grant_if_complete(row)
        for live in list(self._agent.sessions.values()):
            if live.grounds.grant is not None:
                self._look_after(live)
        self._tick()

    # -- who asks --------------------------------------------------------------------

    async def caller(self, uid: int, pid: int) -> Caller:
        """Say who a client is: of root, as whom they logged in, if that is known."""
        is_root = uid == 0
        if is_root:
            with contextlib.suppress(OSError):
                auid = self._kernel.identity(pid).auid
                uid = uid if auid is None else auid
        account, groups = await self._agent.accounts.find(uid)
        if account is None:
            raise AccessDenied(f"uid {uid} is no user of this host")
        return Caller(uid, account, groups or (), is_root)

    def limit(self, caller: Caller) -> None:
        """Keep anybody but root from filling ledger and journal. Raises: AccessDenied"""
        if caller.is_root:
            return
        since = self._kernel.mono_ns() - ASKED_SPELL_NS
        asked = [one for one in self._asked.get(caller.uid, []) if one > since]
        self._asked[caller.uid] = asked
        if len(asked) >= MAX_ASKED:
            raise AccessDenied(
                f"{caller.name} has asked {len(asked)} times within ten minutes", "try again later"
            )
        asked.append(self._kernel.mono_ns())

    def facts(self, account: Account, groups: Sequence[str]) -> Facts:
        return Facts(
            user=account.name, uid=account.uid, groups=tuple(groups), service="",
            host=self._book.host.hostname, host_tags=self._agent.config.host.tags, source=None,
            claimed_source=None, ruser=None, tty=None, command=None, login_shell=None,
            tags=frozenset(), claimed_tags=frozenset(), outer=None,
        )  # fmt: skip

    # -- asking ----------------------------------------------------------------------

    async def request(self, caller: Caller, told: Mapping[str, Any]) -> Dict[str, Any]:
        """Take a request; tell what came of it."""
        now = self._kernel.now().replace(microsecond=0)
        user = fields.text(told, "user") or caller.name
        begins = fields.moment(told, "not_before") or now
        seconds = fields.count(told, "seconds", 1, 366 * 86400)
        try:
            expires = begins + timedelta(seconds=seconds)
        except OverflowError:  # in the year 10000
            raise GrantError(f"it ends more than {MAX_AHEAD.days} days from now") from None
        asked = Asked(
            user=user,
            requester=caller.name,
            host=fields.text(told, "host") or self._book.host.hostname,
            level=fields.text(told, "level") or "metadata",
            not_before=begins,
            expires=expires,
            uses=fields.count(told, "uses", 1, 10**6),
            reason=fields.text(told, "reason") or "",
            ticket=fields.text(told, "ticket"),
            why=fields.text(told, "why") or "",
            max_seconds=fields.count(told, "max_seconds", 1, 366 * 86400)
            if told.get("max_seconds") is not None
            else None,
            supervised=told.get("supervised") is True,
            scope=fields.text(told, "scope") or "session",
        )
        source = fields.source(told)
        account, groups = await self._agent.accounts.find(-1, user)
        if account is None:
            raise NotFound(f"no user {user} on this host")
        request = self.approvers.make_request(
            self._new_id(), asked, account.uid, source, now, self._agent.config.host.org
        )
        request = replace(request, requester_uid=caller.uid)
        if not self._is_here(asked.host) and self._agent.config.central.directory is None:
            return await self._ask_elsewhere(request, caller)
        return await self._ask(request, self.facts(account, groups or ()), caller)

    def _is_here(self, host: str) -> bool:
        return host.lower() == self._book.host.hostname.lower()

    async def _ask_elsewhere(self, request: Request, caller: Caller) -> Dict[str, Any]:
        """Enter a request for another host, to be sent there; its policy says whether it may be."""
        asked, now = request.asked, self._kernel.now()
        if not caller.is_root and caller.name != asked.user:
            raise GrantError(f"{caller.name} may not ask for {asked.user} on another host")
        if len(asked.why.strip()) < 3:
            raise GrantError("the request does not say why")
        if asked.expires > now + MAX_AHEAD:
            raise GrantError(f"it ends more than {MAX_AHEAD.days} days from now")
        there = [row for row in self.state.rows.values() if row.state(now) == "elsewhere"]
        if sum(row.request.asked.requester == asked.requester for row in there) >= MAX_PENDING:
            raise GrantError(f"{MAX_PENDING} requests of {asked.requester} are elsewhere already")
        request = replace(request, elsewhere=True)
        await self._enter_request(request)
        return self._answer(self.state.rows[request.id])

    def _new_id(self) -> str:
        return records.new_id("g", os.urandom(records.ID_BYTES))

    async def _ask(self, request: Request, user: Facts, caller: Caller) -> Dict[str, Any]:
        """Judge a request, enter it if it is in order, and grant it if nobody has to approve."""
        requester = user
        if caller.name != request.asked.user:
            requester = self.facts(caller.account, caller.groups)
        request = self.judged("request", request, user, requester)
        await self._enter_request(request)
        row = self.state.rows[request.id]
        await self._grant_if_complete(row)
        return self._answer(row)

    def judged(self, what: str, request: Request, user: Facts, requester: Facts) -> Request:
        """Give a request with what allows it. Raises: GrantError if nothing does"""
        asked, now = request.asked, self._kernel.now()
        standing = self.state.standing(asked.user, asked.requester, now)
        judgement = judge(asked, self.policy, user, requester, standing, now)
        allowance = judgement.allowance
        if not judgement.allowed or allowance is None:
            words = "; ".join(one.message for one in judgement.refusals)
            self._tell("request-refused", request, fault=words)
            hint = "see what may be asked for: recuse-approval(5), approval.d"
            raise GrantError(f"{what} refused: {words}", hint)
        return replace(
            request,
            allowance=allowance.name,
            approvers=allowance.approvers,
            groups=allowance.groups,
            policy=self.policy.digest,
            end_sessions=allowance.end_sessions,
        )

    async def _enter_request(self, request: Request) -> None:
        seq = await self._book.enter(grantrecords.request_entry, request)
        self._tell("request", request, approvers=request.approvers, why=request.asked.why, seq=seq)

    async def enter_carried(
        self, request: Request, approvals: Sequence[Approval] = ()
    ) -> Dict[str, Any]:
        """Enter a request that was made elsewhere, with the approvals that came with it."""
        async with self._granting:
            if request.id in self.state.rows:
                raise GrantError(f"{request.id} is here already")
            await self._enter_request(request)
            for approval in approvals:
                await self._enter_approval(request, approval)
        row = self.state.rows[request.id]
        await self._grant_if_complete(row)
        return self._answer(row)

    def _answer(self, row: GrantRow) -> Dict[str, Any]:
        return {"grant": self._json(row)}

    def _json(self, row: GrantRow) -> Dict[str, Any]:
        return row.in_full(self._kernel.now(), self.approvers.namespace(self._org()))

    # -- approving -------------------------------------------------------------------

    def _find(self, name: str, among: Mapping[str, Any], what: str) -> str:
        if name in among:
            return name
        found = [one for one in among if one.startswith(name)] if len(name) >= 4 else []
        if len(found) != 1:
            raise NotFound(f"no {what} {name!r:.40} on this host", "list them: recuse grants --all")
        return found[0]

    def row(self, name: str) -> GrantRow:
        """Find a request by its id, or the beginning of it. Raises: NotFound"""
        return self.state.rows[self._find(name, self.state.rows, "request")]

    def _pending(self, name: str) -> GrantRow:
        row = self.row(name)
        state = row.state(self._kernel.now())
        if state != "pending":
            raise GrantError(f"request {row.id} is {state}: nothing is to be approved")
        return row

    async def approve(self, caller: Caller, told: Mapping[str, Any]) -> Dict[str, Any]:
        """Take an approval: a signature, whoever brings it, or the password of who asks."""
        row = self._pending(fields.text(told, "grant") or "")
        try:
            approval = await self._read_approval(row, caller, told)
            async with self._granting:
                self._pending(row.id)  # still: others approve at the same time
                self._check_new(row, approval)
                self._check_counter(approval.grant, approval)
                await self._enter_approval(row.request, approval)
        except RecuseError as error:
            self._tell("approval-refused", row.request, fault=error.message, by=caller.name)
            raise
        await self._grant_if_complete(row)
        return self._answer(row)

    async def _read_approval(
        self, row: GrantRow, caller: Caller, told: Mapping[str, Any]
    ) -> Approval:
        """Check what somebody brings as an approval. Raises: RecuseError"""
        request = row.request
        if told.get("signature") is None:
            principal = self._local_principal(row, caller)
            await self._check_password(caller, told)
            return Approval(request.id, request.digest, principal, "pam", uid=caller.uid)
        armored = fields.text(told, "signature", grantrecords.MAX_SIGNATURE_BYTES) or ""
        return self._read_signature(request, armored, caller)

    def _read_signature(self, request: Request, armored: str, caller: Caller) -> Approval:
        """Check a signature that is to count as an approval. Raises: RecuseError"""
        signed = self.approvers.check(request.raw, armored, self._kernel.now(), self._org())
        self._check_signed(request, signed)
        return Approval(
            request.id, request.digest, signed.principal, "signature", signed.key,
            signed.key_type, armored, caller.uid, signed.counter,
        )  # fmt: skip

    def read_signatures(
        self, request: Request, signatures: Sequence[str], caller: Caller
    ) -> Sequence[Approval]:
        """Check all the signatures that came with a request. Raises: RecuseError"""
        row = GrantRow(request.id, -1, "", request, 0)
        for armored in signatures:
            approval = self._read_signature(request, armored, caller)
            self._check_counter(request.id, approval)
            self._check_new(row, approval)
            row.approvals.append(approval)
        return row.approvals

    async def _enter_approval(self, request: Request, approval: Approval) -> None:
        seq = await self._book.enter(
            grantrecords.approval_entry, approval, user=request.asked.user
        )
        self._tell("approval", request, by=approval.principal, method=approval.method, seq=seq)

    def _org(self) -> str:
        return self._agent.config.host.org

    def _people(self, request: Request) -> FrozenSet[str]:
        return frozenset({request.asked.user, request.asked.requester})

    def _check_signed(self, request: Request, signed: Signed) -> None:
        """Refuse a signature that holds but counts for nothing."""
        allowance = self._allowance(request)
        if allowance is None:
            told = f"allowance {request.allowance} is gone from the approval policy"
            raise GrantError(told, "ask anew: recuse request")
        self._check_self(request, (signed.principal, *signed.also))
        if signed.principal not in self.policy.principals(request.groups):
            groups = ", ".join(request.groups)
            raise GrantError(f"{signed.principal} is in none of the groups that approve: {groups}")
        if allowance.key_types and signed.key_type not in allowance.key_types:
            kinds = ", ".join(sorted(allowance.key_types))
            raise GrantError(f"a signature by {signed.key_type} is not enough: it takes {kinds}")
        if allowance.verification and not signed.verified:
            raise GrantError("the signature was made without PIN or finger, which it takes")

    def _check_self(self, request: Request, principals: Sequence[str]) -> None:
        people = self._people(request)
        for principal in principals:
            if self.policy.accounts_of(principal) & people:
                raise GrantError(
                    f"{principal} asked for this, or it is for them: nobody approves their own",
                    "ask somebody else to sign",
                )

    @staticmethod
    def _check_new(row: GrantRow, approval: Approval) -> None:
        for one in row.approvals:
            if one.principal == approval.principal:
                raise GrantError(f"{approval.principal} has approved already")
            if one.key is not None and one.key == approval.key:
                raise GrantError(f"that key has signed already, for {one.principal}")

    def _check_counter(self, grant: str, signed: Union[Approval, SignedEnd]) -> None:
        """Tell of a security key that does not count on: somebody may have made another of it.

        Those that do not count at all say 0 each time. Raises: GrantError if the policy refuses it
        """
        if signed.counter is None or signed.key is None:
            return
        last = self.state.counters.get(signed.key, 0)
        if last == 0 or signed.counter > last:
            return
        told = f"security key {signed.key} counts {signed.counter} after {last}"
        self._journal.write("key-counter", grant=grant, fault=told)
        if self.policy.key_counter == "refuse":
            raise GrantError(
                f"{told}: there may be two of it", "ask its owner; it is refused by key_counter"
            )

    def _local_principal(self, row: GrantRow, caller: Caller) -> str:
        """Say as whom somebody approves without a key. Raises: GrantError, AccessDenied"""
        request = row.request
        allowance = self._allowance(request)
        if allowance is None or not allowance.local:
            raise GrantError(
                "approval by password is not allowed here", f"sign: recuse approve {request.id}"
            )
        if caller.name in self._people(request):
            raise GrantError("nobody approves their own request", "ask somebody else")
        mine = self._principal_without_key(caller, request.groups, "approve")
        self._check_self(request, (mine,))
        return mine

    def _principal_without_key(self, caller: Caller, among: Sequence[str], what: str) -> str:
        """Say who somebody is in some groups of approvers. Raises: AccessDenied"""
        mine = sorted(
            one
            for one in self.policy.principals(among)
            if caller.name in self.policy.accounts_of(one)
        )
        if not mine or caller.is_root:  # who could be anybody
            groups = ", ".join(among)
            raise AccessDenied(f"{caller.name} is in none of the groups that {what}: {groups}")
        return mine[0]

    async def _check_password(self, caller: Caller, told: Mapping[str, Any]) -> None:
        password = fields.text(told, "password") or ""
        await self._passwords.check(caller.uid, caller.name, password)

    async def _grant_if_complete(self, row: GrantRow) -> None:
        async with self._granting:
            if row.state(self._kernel.now()) != "pending" or row.granted_ns is not None:
                return
            try:
                checked = self._check_approvals(row)
            except Unusable:
                return
            good = checked.counted
            if not checked.enough:
                return
            method = "automatic"
            if row.request.approvers:
                method = "pam" if any(one.method == "pam" for one in good) else "signature"
            owner = ", ".join(one.principal for one in good)
            await self._enter_grant(
                row, method, owner or f"automatic, allowance {row.request.allowance}"
            )

    async def _enter_grant(self, row: GrantRow, method: str, owner: str) -> None:
        seq = await self._book.enter(
            grantrecords.grant_entry, row.request, method, owner, row.entry, row.approval_entries,
            self.approvers.basis(self.policy.digest),
        )
        asked = row.request.asked
        self._tell(
            "grant", row.request, method=method, by=owner, uses=asked.uses, seq=seq,
            expires=records.format_time(round(asked.expires.timestamp()) * 10**9),
        )  # fmt: skip
        self.keep_floor()

    def _check_approvals(self, row: GrantRow) -> Checked:
        """Count the approvals that hold now: keys may have been revoked, or have expired, since.

        Raises: Unusable if the files that say so are
        """
        request = row.request
        allowance = self._allowance(request)
        if allowance is None:
            return Checked(0, (), (), max(1, request.approvers))
        terms = TermsOfApproval(
            approvers=request.approvers,
            principals=self.policy.principals(request.groups),
            key_types=allowance.key_types,
            verification=allowance.verification,
            local=allowance.local,
            origins=self.policy.origins,
        )
        return self.approvers.check_grant(
            request, row.approvals, terms, self._kernel.now(), self._org(), self.policy.accounts_of
        )

    def _allowance(self, request: Request) -> Optional[Allowance]:
        """Find what a request was allowed by, if the approval policy still has it."""
        return self.policy.allowance(request.allowance)

    # -- undoing ---------------------------------------------------------------------

    async def reject(self, caller: Caller, told: Mapping[str, Any]) -> Dict[str, Any]:
        """Turn a request down; who asked may withdraw it."""
        row = self._pending(fields.text(told, "grant") or "")
        self._may_end(caller, row)
        words = fields.text(told, "words") or ""
        await self.end("rejection", caller, row, words)
        return self._answer(row)

    async def revoke(self, caller: Caller, told: Mapping[str, Any]) -> Dict[str, Any]:
        """Take a grant back, and what it exempts is no longer exempt."""
        row = self.row(fields.text(told, "grant") or "")
        state = row.state(self._kernel.now())
        live = [one for one in self._agent.sessions.values() if one.grounds.grant == row.id]
        paused = self._agent.pauses.under(row.id)
        if state in ("rejected", "revoked") or (state != "granted" and not live and not paused):
            raise GrantError(f"request {row.id} is {state}: there is nothing to revoke")
        self._may_end(caller, row)
        await self.end("revocation", caller, row, fields.text(told, "words") or "")
        return {**self._answer(row), "ended": self._withdraw_all(row, caller.name)}

    def _withdraw_all(self, row: GrantRow, by: str) -> List[str]:
        live = [one for one in self._agent.sessions.values() if one.grounds.grant == row.id]
        for one in live:
            self._withdraw(one, "grant-revoked", f"grant {row.id} was revoked by {by}")
        return [one.id for one in live] + self._agent.pauses.revoke(row.id)

    def _may_end(self, caller: Caller, row: GrantRow) -> None:
        if caller.is_root or caller.name in self._people(row.request):
            return
        if self.policy.may_approve(caller.name):
            return
        raise AccessDenied(
            f"{caller.name} may not end {row.id}", "approvers may, and who asked, and root"
        )

    async def end(
        self,
        kind: str,
        caller: Caller,
        row: GrantRow,
        words: str,
        by: Optional[str] = None,
        signed: Optional[SignedEnd] = None,
    ) -> None:
        by = by or caller.name
        seq = await self._book.enter(
            grantrecords.end_entry, kind, row.id, by, caller.uid, words, signed,
            user=row.request.asked.user,
        )  # fmt: skip
        self._tell(kind, row.request, by=by, words=words or None, seq=seq)
        self.keep_floor()

    async def end_signed(self, caller: Caller, raw: bytes, armored: str) -> Dict[str, Any]:
        """Take the word of somebody elsewhere that a request, or the grant it became, is ended.

        What is signed ends it in whichever state it finds it: who carries the mail may deliver
        approvals first.
        """
        told = mail.read_statement(raw)
        row = self.state.rows.get(told.grant)
        if row is None or told.org != self._org() or told.digest != row.request.digest:
            raise GrantError(f"{told.grant:.40} is no request of this host, or reads otherwise")
        signed = self.approvers.check(raw, armored, self._kernel.now(), self._org())
        who = {signed.principal, *signed.also}
        accounts = {one for name in who for one in self.policy.accounts_of(name)}
        may = self.policy.principals(tuple(self.policy.groups))
        if not who & may and not accounts & self._people(row.request):
            told_who = f"{signed.principal} may not end {row.id}"
            raise GrantError(told_who, "approvers may, and who asked")
        async with self._granting:
            state = row.state(self._kernel.now())
            live = any(one.grounds.grant == row.id for one in self._agent.sessions.values())
            live = live or bool(self._agent.pauses.under(row.id))
            ended = row.rejected_by is not None or row.revoked_by is not None
            if ended or (state not in ("pending", "granted") and not live):
                raise GrantError(f"request {row.id} is {state}: there is nothing to end")
            proof = SignedEnd(
                raw.decode(), armored, signed.key, signed.key_type, signed.counter
            )
            self._check_counter(row.id, proof)
            kind = "rejection" if state == "pending" else "revocation"
            await self.end(kind, caller, row, told.words, signed.principal, proof)
        return {**self._answer(row), "ended": self._withdraw_all(row, signed.principal)}

    # -- using -----------------------------------------------------------------------

    def offers(self, user: str, identity: Identity, facts: Facts) -> List[Grant]:
        """Give the grants that are in force for a session of somebody, from somewhere, now.

        `identity` is the kernel's word on whose session it is.
        """
        return [
            Grant(
                id=row.id,
                reason=self._words_of(row.request.asked),
                owner=row.owner or "",
                not_before=row.request.asked.not_before,
                expires=row.request.asked.expires,
                reason_code=row.request.asked.reason,
                terms=Terms(
                    level=row.request.asked.level, supervised=row.request.asked.supervised
                ),
            )
            for row in self._in_force("session", user, identity, facts)
        ]

    def _in_force(
        self, scope: str, user: str, identity: Identity, facts: Facts, told: bool = True
    ) -> List[GrantRow]:
        """Find the grants that may be used here and now; tell the journal why others may not."""
        now = self._kernel.now()
        found: List[GrantRow] = []
        for row in self.state.rows.values():
            asked = row.request.asked
            if (asked.user, asked.scope) != (user, scope) or row.state(now) != "granted":
                continue
            fault = self._fault(row, identity, facts, now)
            if fault is None:
                found.append(row)
            elif told:
                self._tell("grant-unused", row.request, fault=fault)
        return found

    async def pause_offers(self, live: LiveSession, told: bool = True) -> List[PauseOffer]:
        """Give the grants by which the recording of a session may be paused now, longest first."""
        login = live.session.login
        account, groups = await self._agent.accounts.find(login.uid, login.user)
        if account is None or live.grounds.effect == "require-record":
            return []
        facts = replace(
            self.facts(account, groups or ()), service=login.service, source=login.source.address,
            command=live.session.command, tty=live.session.tty is not None,
        )  # fmt: skip
        # The relay has become a user of ours; whose audit session it is in has not changed.
        identity = replace(self._kernel.identity(live.pid), ruid=login.uid)
        found = []
        for row in self._in_force("pause", account.name, identity, facts, told):
            asked = row.request.asked
            left = int((asked.expires - self._kernel.now()).total_seconds())
            seconds = min(left, asked.max_seconds or left)
            if seconds > 0:
                found.append(PauseOffer(row.id, asked.reason, asked.ticket, seconds))
        return sorted(found, key=lambda one: (-one.seconds, one.grant))

    async def check_pause_reason(
        self, live: LiveSession, code: str, ticket: Optional[str]
    ) -> None:
        """See that a reason may be given for a pause. Raises: PauseError

        A policy without a catalogue of reasons takes any.
        """
        reasons = self._agent.policy.reasons
        if not reasons:
            return
        reason, login = reasons.get(code), live.session.login
        if reason is None:
            may = ", ".join(sorted(reasons))
            raise PauseError(f"{code!r} is no reason here: one of {may}")
        fault = reason.fault_of_ticket(ticket)
        if fault is not None:
            raise PauseError(fault, "name it: recuse pause --ticket NAME")
        account, groups = await self._agent.accounts.find(login.uid, login.user)
        if reason.roles:
            roles: FrozenSet[str] = frozenset()
            if account is not None:
                facts = self.facts(account, groups or ())
                roles = self.policy.index.subject(facts, self._kernel.now()).roles
            if not reason.roles & roles:
                raise PauseError(f"{login.user} may not give the reason {code}")

    def _words_of(self, asked: Asked) -> str:
        reason = self.policy.reasons.get(asked.reason)
        return reason.texts.choose() if reason is not None else asked.reason

    def _fault(
        self, row: GrantRow, identity: Identity, facts: Facts, now: datetime
    ) -> Optional[str]:
        """Say why a grant is not to be used here and now; None if nothing is against it."""
        request, asked = row.request, row.request.asked
        behind = self.state.newest_ns - self._kernel.now_ns()
        if behind > CLOCK_TOLERANCE_NS:
            return f"the clock was set back by {behind // 10**9} s"
        if asked.host.lower() != self._book.host.hostname.lower():
            return f"it is for host {asked.host}"
        if request.uid != identity.ruid:
            return f"it is for uid {request.uid}, and {asked.user} has uid {identity.ruid} now"
        if identity.auid not in (None, request.uid):
            return f"it is for {asked.user}, and uid {identity.auid} logged in and became them"
        if request.source is not None and not is_from(facts.source, request.source):
            return f"it is for sessions from {request.source}"
        if now < asked.not_before:
            return "it is not valid yet"
        if self._left(row) < 1:
            return "all its uses are taken"
        if self.state.overdue(asked.user, self._kernel.now_ns()):
            return f"a review that {asked.user} owes is overdue"
        subject = self.policy.index.subject(facts, now)
        for matcher in self.policy.never:
            if matcher.test(subject):
                return f"{matcher.key} {matcher.wanted()} are never exempt"
        if row.method in ("signature", "pam"):
            try:
                checked = self._check_approvals(row)
            except Unusable as error:
                return error.message
            if not checked.enough or not checked.people:
                return checked.shortfall
        return None

    def _left(self, row: GrantRow) -> int:
        return row.left - sum(one.grant == row.id for one in self._taken)

    def take(self, grant: str) -> Use:
        """Set a use aside; to be called in one go with what offers() gave."""
        row = self.state.rows[grant]
        taken = max([row.taken, *(one.n for one in self._taken if one.grant == grant)])
        use = Use(grant, taken + 1)
        self._taken.add(use)
        return use

    def release(self, use: Use) -> None:
        """Undo take(), or note that the use is entered."""
        self._taken.discard(use)

    def use_entry(self, use: Use) -> Dict[str, Any]:
        """Give what the entry of a session says of its use, if the grant is still good for it.

        Raises: GrantError
        """
        row = self.state.rows[use.grant]
        if row.state(self._kernel.now()) != "granted":
            raise GrantError(f"grant {row.id} is {row.state(self._kernel.now())}")
        return {
            "n": use.n,
            "uses": row.request.asked.uses,
            "digest": row.request.digest,
            "request_entry": row.entry,
            "grant_entry": row.grant_entry,
            "approval_entries": list(row.approval_entries),
        }

    def started(self, live: LiveSession, use: Use) -> None:
        """Hear that a session, or a pause in it, goes on under a grant."""
        row = self.state.rows[use.grant]
        self._tell(
            "grant-used", row.request, session=live.id, use=use.n, uses=row.request.asked.uses,
            left=row.left,
        )  # fmt: skip
        self._look_after(live)

    # -- ends of exemptions ----------------------------------------------------------

    def _left_ns(self, live: LiveSession) -> Optional[int]:
        """Say how long the exemption of a session still lasts; None if it has no end.

        By the clock that nobody sets, too: one that is set back gains nothing.
        """
        end = self._deadline_ns(live)
        if end is None:
            return None
        ran_ns = self._kernel.mono_ns() - live.session.mono_ns
        return end - max(self._kernel.now_ns(), live.session.started_ns + ran_ns)

    def _deadline_ns(self, live: LiveSession) -> Optional[int]:
        row = self.state.rows.get(live.grounds.grant or "")
        if row is None:
            return None
        asked, found = row.request.asked, []
        if asked.max_seconds is not None:
            found.append(live.session.started_ns + asked.max_seconds * 10**9)
        if row.request.end_sessions:
            found.append(round(asked.expires.timestamp()) * 10**9)
        return min(found, default=None)

    def _look_after(self, live: LiveSession) -> None:
        row = self.state.rows.get(live.grounds.grant or "")
        if row is not None and row.revoked_by is not None:
            self._withdraw(live, "grant-revoked", f"grant {row.id} was revoked")
        self._arm(live)

    def _arm(self, *beginning: LiveSession) -> None:
        """See to it that _tick() comes when the next exemption ends, or a review is overdue.

        What has ended, or was told, is waited for no more. A session that begins is not among the
        agent's yet.
        """
        now_ns = self._kernel.now_ns()
        waits = [
            self._left_ns(live)
            for live in (*self._agent.sessions.values(), *beginning)
            if not _is_withdrawn(live)
        ]
        waits += [
            debt.due_ns - now_ns
            for debt in self.state.debts.values()
            if debt.reviewed_by is None and debt.id not in self._overdue_told
        ]
        soonest = min((one for one in waits if one is not None), default=None)
        self.close()  # the timer of before
        if soonest is not None:
            delay = min(CHECK_SECONDS, max(LEAST_SECONDS, soonest / 1e9))
            self._timer = asyncio.get_running_loop().call_later(delay, self._tick)

    def _tick(self) -> None:
        now_ns = self._kernel.now_ns()
        for live in list(self._agent.sessions.values()):
            left = self._left_ns(live)
            if left is not None and left <= 0:
                self._withdraw(live, "grant-expired", f"grant {live.grounds.grant} has expired")
        for debt in self.state.debts.values():
            if debt.overdue(now_ns) and debt.id not in self._overdue_told:
                self._overdue_told.add(debt.id)
                self._journal.write(
                    "debt-overdue", grant=debt.id, user=debt.user,
                    due=records.format_time(debt.due_ns),
                )  # fmt: skip
        self._arm()

    def _withdraw(self, live: LiveSession, flag: str, words: str) -> None:
        """End the exemption of a session that runs."""
        if live.ended or flag in live.flags:
            return
        live.flags.append(flag)
        with contextlib.suppress(OSError):
            self._agent.live.save(live)
        self._journal.write(
            "exemption-ended", session=live.id, login=live.session.login.id, pid=live.pid,
            grant=live.grounds.grant, user=live.session.login.user, uid=live.session.login.uid,
            tty=live.session.tty, seq=live.seq, fault=words,
        )  # fmt: skip
        if live.withheld:
            self._agent.spawn(self._agent.pauses.withdraw(live, words))
        else:
            self._agent.spawn(self._agent.stop_session(live, words))

    # -- breaking the glass ----------------------------------------------------------

    async def break_glass(self, caller: Caller, told: Mapping[str, Any]) -> Dict[str, Any]:
        """Grant at once, and note what is owed for it."""
        now = self._kernel.now().replace(microsecond=0)
        glass, why = self.policy.break_glass, fields.text(told, "why") or ""
        facts = self.facts(caller.account, caller.groups)
        standing = self.state.standing(caller.name, caller.name, now)
        refusals = judge_break_glass(self.policy, facts, standing, why, now)
        if refusals or glass is None:
            words = "; ".join(one.message for one in refusals)
            self._journal.write("request-refused", user=caller.name, fault=words)
            raise GrantError(f"break-glass refused: {words}", "ask instead: recuse request")
        asked = Asked(
            user=caller.name, requester=caller.name, host=self._book.host.hostname,
            level=glass.level, not_before=now,
            expires=now + timedelta(seconds=glass.longest_seconds), uses=glass.uses,
            reason="break-glass", ticket=fields.text(told, "ticket"), why=why,
            supervised=glass.supervised,
        )  # fmt: skip
        request = self.approvers.make_request(
            self._new_id(), asked, caller.account.uid, None, now, self._org()
        )
        request = replace(
            request, requester_uid=caller.uid, policy=self.policy.digest, end_sessions=True
        )
        due_ns = self._kernel.now_ns() + glass.review_seconds * 10**9
        statement = self.approvers.make_statement(request, self._org())
        # The debt first: what is owed is known even if the next entry is never made.
        await self._enter_request(request)
        seq = await self._book.enter(
            grantrecords.debt_entry, request, due_ns, glass.reviewers, statement
        )
        row = self.state.rows[request.id]
        await self._enter_grant(row, "break-glass", f"break-glass by {caller.name}")
        self._tell("debt", request, why=why, due=records.format_time(due_ns), seq=seq)
        self._arm()
        return {**self._answer(row), "debt": self._debt_json(request.id)}

    async def review(self, caller: Caller, told: Mapping[str, Any]) -> Dict[str, Any]:
        """Take a second person's word that they have looked at it: a signature, or a password."""
        name = self._find(fields.text(told, "grant") or "", self.state.debts, "debt")
        debt, row = self.state.debts[name], self.state.rows.get(name)
        self._owed(debt)
        if told.get("signature") is None and told.get("password") is None:
            return {"debt": self._debt_json(debt.id)}
        people = frozenset({debt.user})
        if row is not None:
            people |= self._people(row.request)
        words = fields.text(told, "words") or ""
        try:
            review = await self._read_review(debt, people, caller, told)
            async with self._granting:
                self._owed(debt)  # still: others review at the same time
                self._check_counter(debt.id, review)
                seq = await self._book.enter(
                    grantrecords.review_entry, review, words, user=debt.user
                )
        except RecuseError as error:
            self._journal.write(
                "review-refused", grant=debt.id, user=debt.user, by=caller.name,
                fault=error.message,
            )  # fmt: skip
            raise
        self._journal.write(
            "review", grant=debt.id, user=debt.user, by=review.principal, method=review.method,
            words=words or None, seq=seq,
        )  # fmt: skip
        self.keep_floor()
        return {"debt": self._debt_json(debt.id)}

    @staticmethod
    def _owed(debt: Debt) -> None:
        if debt.reviewed_by is not None:
            raise GrantError(f"{debt.id} was reviewed by {debt.reviewed_by}")

    async def _read_review(
        self, debt: Debt, people: FrozenSet[str], caller: Caller, told: Mapping[str, Any]
    ) -> Approval:
        """Check what somebody brings as a review. Raises: RecuseError"""
        digest = self.approvers.digest(debt.statement)
        if told.get("signature") is None:
            glass = self.policy.break_glass
            if glass is None or not glass.local:
                raise GrantError(
                    "review by password is not allowed here", f"sign: recuse review {debt.id}"
                )
            principal = self._principal_without_key(caller, debt.reviewers, "review")
            self._check_reviewer((principal,), people)
            await self._check_password(caller, told)
            return Approval(debt.id, digest, principal, "pam", uid=caller.uid)
        armored = fields.text(told, "signature", grantrecords.MAX_SIGNATURE_BYTES) or ""
        signed = self.approvers.check(debt.statement, armored, self._kernel.now(), self._org())
        self._check_reviewer((signed.principal, *signed.also), people)
        if signed.principal not in self.policy.principals(debt.reviewers):
            groups = ", ".join(debt.reviewers)
            raise GrantError(f"{signed.principal} is in none of the groups that review: {groups}")
        return Approval(
            debt.id, digest, signed.principal, "signature", signed.key, signed.key_type, armored,
            caller.uid, signed.counter,
        )  # fmt: skip

    def _check_reviewer(self, principals: Sequence[str], people: FrozenSet[str]) -> None:
        for principal in principals:
            if self.policy.accounts_of(principal) & people:
                raise GrantError(f"{principal} broke the glass: somebody else has to review it")

    def _debt_json(self, name: str) -> Dict[str, Any]:
        namespace = self.approvers.namespace(self._org())
        return self.state.debts[name].to_json(self._kernel.now_ns(), namespace)

    def outcomes_for(self, login: records.Login, locale: str) -> str:
        """Give lines for somebody who logs in on a terminal: what became of what they asked for."""
        texts = self._agent.upkeep.notices
        return self._outcomes.take(self.state.rows, login, texts, locale, self._kernel.now())

    # -- showing ---------------------------------------------------------------------

    def grants(self, caller: Caller, told: Mapping[str, Any]) -> Dict[str, Any]:
        """List what somebody may see: their own; approvers and root, everything."""
        sees_all = caller.is_root or self.policy.may_approve(caller.name)
        rows = [
            self._json(row)
            for row in self.state.rows.values()
            if sees_all or caller.name in self._people(row.request)
        ]
        wanted = fields.text(told, "grant")
        if wanted:
            rows = [row for row in rows if row["grant"].startswith(wanted)]
        debts = [
            self._debt_json(name)
            for name, debt in self.state.debts.items()
            if sees_all or debt.user == caller.name
        ]
        return {"grants": rows[-MAX_ROWS:], "debts": debts[-MAX_ROWS:]}

    # -- telling ---------------------------------------------------------------------

    def _tell(self, kind: str, request: Request, **more: Any) -> None:
        asked = request.asked
        self._journal.write(
            kind, grant=request.id, user=asked.user, uid=request.uid, requester=asked.requester,
            reason=asked.reason, ticket=asked.ticket, **more,
        )  # fmt: skip

    def close(self) -> None:
        """Look after nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _is_withdrawn(live: LiveSession) -> bool:
    return live.ended or not WITHDRAWN.isdisjoint(live.flags)


def _epoch_of(name: str) -> int:
    number = name.rpartition(".")[2]
    return int(number) if number.isdigit() else 0
