"""What reaches the desk from elsewhere, and leaves it for there: by mail, or in a file.

Part of the agent. Mail is carried by recuse-ship, a file by anybody: who brings something vouches
for nothing, and the desk judges it as if it had come any other way. What waits to be sent is what
the ledger says; that it was sent is known until the agent ends, and sending it twice does no harm.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Set

from . import fields, grantrecords, mail
from .approval import LEEWAY
from .errors import GrantError, WireError
from .grantrecords import Request

if TYPE_CHECKING:
    from .agent import Agent
    from .desk import Caller

MAX_SIGNATURES = 16  # in one file


class Letterbox:
    """The desk's way to other hosts, and to approvers who are not here."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._desk = agent.desk
        self._kernel = agent.kernel
        self._sent: Set[str] = set()  # requests that have gone to the hosts they are for

    # -- by mail ---------------------------------------------------------------------

    async def take_mail(self, caller: Caller, told: Mapping[str, Any]) -> Dict[str, Any]:
        """Take what somebody sent through the collector."""
        item = mail.read_item((fields.text(told, "body", mail.MAX_ITEM_BYTES) or "").encode())
        if item.kind == "approval":
            approval = {"grant": item.grant, "signature": item.signature}
            return await self._desk.approve(caller, approval)
        if item.kind == "review":
            review = {"grant": item.grant, "signature": item.signature}
            return await self._desk.review(caller, review)
        if item.kind == "end":
            raw, armored = (item.statement or "").encode(), item.signature or ""
            return await self._desk.end_signed(caller, raw, armored)
        return await self._desk.enter_carried(await self._judged((item.request or "").encode()))

    async def mail_state(self, caller: Caller, told: Mapping[str, Any]) -> Dict[str, Any]:
        """Say whether anything is open that mail may be about, and what is to be sent next.

        Hear what was sent, or that it cannot be.
        """
        sent, fault = fields.text(told, "sent"), fields.text(told, "fault")
        if sent is not None:
            self._sent.add(sent)
            row, now = self._desk.state.rows.get(sent), self._kernel.now()
            if fault is not None and row is not None and row.state(now) == "elsewhere":
                await self._desk.end("rejection", caller, row, fault)
        return {"waiting": self._is_waiting(), "outgoing": self._outgoing()[:1]}

    def _is_waiting(self) -> bool:
        now, state = self._kernel.now(), self._desk.state
        return (
            any(live.grounds.grant for live in self._agent.sessions.values())
            or any(row.state(now) in ("pending", "granted") for row in state.rows.values())
            or any(debt.reviewed_by is None for debt in state.debts.values())
        )

    def _outgoing(self) -> List[Dict[str, str]]:
        now = self._kernel.now()
        return [
            {
                "id": row.id,
                "host": row.request.asked.host,
                "body": mail.write_item(
                    mail.Item("request", request=row.request.raw.decode())
                ).decode(),
            }
            for row in self._desk.state.rows.values()
            if row.state(now) == "elsewhere" and row.id not in self._sent
        ]

    # -- by file ---------------------------------------------------------------------

    async def take_file(self, caller: Caller, told: Mapping[str, Any]) -> Dict[str, Any]:
        """Take a request with all its signatures. Nothing is entered unless all of it holds."""
        raw = (fields.text(told, "request", grantrecords.MAX_REQUEST_BYTES) or "").encode()
        signatures = told.get("signatures")
        if not isinstance(signatures, list) or not all(isinstance(s, str) for s in signatures):
            raise WireError("not a request this agent knows")
        if len(signatures) > MAX_SIGNATURES or any(
            len(one) > grantrecords.MAX_SIGNATURE_BYTES for one in signatures
        ):
            raise GrantError("it has more signatures, or longer ones, than a grant has")
        request = await self._judged(raw)
        approvals = self._desk.read_signatures(request, signatures, caller)
        if len(approvals) < request.approvers:
            raise GrantError(
                f"it has {len(approvals)} signatures that count, and {request.approvers} are wanted"
            )
        return await self._desk.enter_carried(request, approvals)

    # -- requests made elsewhere -----------------------------------------------------

    async def _judged(self, raw: bytes) -> Request:
        """Judge a request that was made elsewhere, as if it were made here. Raises: GrantError"""
        desk, now = self._desk, self._kernel.now()
        request, issued = desk.approvers.read_request(raw, self._agent.config.host.org)
        asked = request.asked
        known = desk.state.rows.get(request.id)
        if known is not None:
            raise GrantError(f"{request.id} is here already, and {known.state(now)}")
        began = datetime.fromtimestamp(desk.state.began_ns / 1e9, timezone.utc)
        if issued < began:
            raise GrantError(
                f"it was made before the ledger of this host began anew at {began:%F %T} UTC: "
                "how often it was used since is not known", "ask anew: recuse request",
            )  # fmt: skip
        if issued > now + LEEWAY:
            raise GrantError("it was made in the future", "set the clocks: timedatectl")
        account, groups = await self._agent.accounts.find(-1, asked.user)
        if account is None or account.uid != request.uid:
            raise GrantError(f"there is no user {asked.user} with uid {request.uid} here")
        user = requester = desk.facts(account, groups or ())
        if asked.requester != asked.user:
            account, groups = await self._agent.accounts.find(-1, asked.requester)
            if account is None:
                raise GrantError(f"there is no user {asked.requester} here, who asks for it")
            requester = desk.facts(account, groups or ())
        request = desk.judged("grant", request, user, requester)
        if not request.approvers:
            raise GrantError("it needs nobody's approval: ask here, with recuse request")
        return replace(request, imported=True)
