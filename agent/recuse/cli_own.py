"""A user's own record: what the agent tells of it, proved against the host's key."""

from __future__ import annotations

import os
from typing import Any, Optional

from recuse import amounts, proved
from recuse.cast import printable
from recuse.checkpoint import Verifier
from recuse.console import Call, UsageError, local, table, word
from recuse.errors import CryptoError, FaultsFound, NotFound, count_faults
from recuse.keys import read_vkey


def sessions(call: Call) -> list[dict[str, Any]]:
    """Ask the agent for the caller's own sessions: live ones, and what ended lately."""
    answer = call.control("sessions", ended=True, mine=True)
    return [row for row in answer.get("sessions", []) if isinstance(row, dict)]


def verify(call: Call) -> int:
    """Have the agent prove what the ledger holds of the caller, and check it.

    Raises: FaultsFound
    """
    args, console = call.args, call.console
    if args.dir is not None or args.collector_key or args.min_size or len(args.key) > 1:
        raise UsageError("--mine goes with --key, once, and --json alone")
    answer = call.control("proofs")
    handed, unsigned = answer.get("entries"), answer.get("unsigned")
    if not isinstance(handed, list):
        raise CryptoError("the agent's answer has no entries")
    key, is_given = _key(call, answer.get("vkey"))
    checked = proved.check(handed, key, os.getuid())
    rows = checked.rows
    if args.id:
        rows = [row for row in rows if row.session.startswith(args.id)]
        if not rows:
            raise NotFound("no session %s of yours" % printable(args.id), "see: recuse sessions")
    if args.json:
        told = checked.to_json()
        told.update(sessions=[row.to_json() for row in rows], unsigned=unsigned)
        console.json(told)
    else:
        shown = [["SESSION", "BEGUN", "OUTCOME", "ENTRIES"]]
        for row in rows:
            numbers = "%s to %s" % (row.seq, "now" if row.closed_seq is None else row.closed_seq)
            outcome = word(row.outcome or "live")
            shown.append([word(row.session), local(row.started), outcome, numbers])
        for line in table(shown) if rows else ():
            console.print(line)
        for fault in checked.faults:
            console.print("fault: %s" % printable(fault))
        console.print(
            "%s of yours %s in the ledger %s, as signed for %s"
            % (
                amounts.number(checked.entries, "entry", "entries"),
                "stands" if checked.entries == 1 else "stand",
                word(checked.origin),
                amounts.number(checked.size, "entry", "entries"),
            )
        )
        if unsigned:
            console.print("not signed yet: %s more" % word(unsigned))
        if not is_given:
            console.hint("the host's key is as the agent told it; --key checks with one you keep")
    if checked.faults:
        raise FaultsFound("verification found " + count_faults(len(checked.faults)))
    return 0


def _key(call: Call, told: object) -> tuple[Verifier, bool]:
    given: Optional[str] = call.args.key[0] if call.args.key else None
    if given is None:
        return Verifier.parse(told if isinstance(told, str) else ""), False
    if os.path.exists(given):
        return read_vkey(given), True
    return Verifier.parse(given), True
