"""What approvers see and send at a collector: part of recuse-collector.

Reads the requests of hosts out of the entries that they have sent, and keeps what approvers send
until the host fetches it. It verifies nothing but who may come in: hosts do the rest.
"""

from __future__ import annotations

import hashlib
import json
import logging
from datetime import datetime, timezone
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Tuple

from recuse import mail, sshsig
from recuse.config import read_trusted
from recuse.errors import AccessDenied, CryptoError, LedgerError, RecuseError
from recuse.grant import namespace_in, read_request
from recuse.grantrecords import GrantState
from recuse.mailstore import Answer, Mailbox
from recuse.records import parse
from recuse.store import Store, Unknown

MAX_REQUESTS = 500
"""Requests listed in one answer: the newest of each host, as many of one as of another."""
MAX_ROW = 64 << 10
"""Bytes of one of them. A request with 32 approvals takes less."""
MAX_LISTED = 8 << 20
"""Bytes of all; recuse takes twice as many."""
MAX_READ = 4000
"""Entries about grants, the newest, that are looked at of one host."""
SHOWN = ("pending", "granted", "used")
"""What may still be ended; sessions of a grant that is used up may still run."""
MAX_FETCH = 48 << 10
"""Bytes of items in one answer to a host."""

_log = logging.getLogger("recuse-collector")


class Mailroom:
    """The part of a collector that grants travel through. Calls block on the disk."""

    def __init__(self, store: Store, box: Mailbox, approvers: Path, org: Optional[str]) -> None:
        self._store = store
        self._box = box
        self._approvers = approvers
        self._org = org or "local"
        self._floors: Dict[str, Tuple[str, int]] = {}  # prefix: origin, from where on to read

    @property
    def org(self) -> str:
        return self._org

    def close(self) -> None:
        self._box.close()

    # -- who comes in

    def admit(self, field: str, method: str, path: str, digest: str, now_s: int) -> str:
        """Say which approver signed a request. Raises: AccessDenied, CryptoError"""
        created_s, armored = mail.read_access(field)
        try:
            signers = sshsig.AllowedSigners.parse(
                read_trusted(self._approvers), str(self._approvers)
            )
        except FileNotFoundError:
            raise AccessDenied("no approver is let in: their file does not exist") from None
        except RecuseError as error:
            told = "; ".join(map(str, getattr(error, "faults", ()))) or error.message
            _log.error("no approver is let in: %s", told)
            raise AccessDenied("no approver is let in: their file cannot be used") from None
        text = mail.access_text(self._store.vkey, method, path, created_s, digest)
        signed = sshsig.verify(
            text, armored.encode(), signers, mail.access_namespace(self._org),
            datetime.fromtimestamp(now_s, timezone.utc),
        )  # fmt: skip
        if abs(created_s - now_s) > mail.ACCESS_WINDOW_S:
            raise CryptoError(f"request was signed {created_s - now_s} s off this clock")
        return signed.principals[0]

    # -- what is asked for

    def requests(self, host: Optional[str], now_s: int) -> List[Dict[str, Any]]:
        """List requests that wait and grants not expired, of all hosts or of one, by its id."""
        now = datetime.fromtimestamp(now_s, timezone.utc)
        found = _in_turn(
            sorted(self._requests_of(prefix, now), key=lambda one: str(one["asked"]), reverse=True)
            for prefix in self._prefixes(host)
        )
        return sorted(found, key=lambda one: str(one["asked"]))

    def debts(self, host: Optional[str], now_s: int) -> List[Dict[str, Any]]:
        """List reviews that are owed, of all hosts or of one, by its id."""
        now = datetime.fromtimestamp(now_s, timezone.utc)
        found = _in_turn(
            sorted(self._debts_of(prefix, now), key=lambda one: str(one["due"]))
            for prefix in self._prefixes(host)
        )
        return sorted(found, key=lambda one: str(one["due"]))

    def _prefixes(self, host: Optional[str]) -> List[str]:
        return [self.host(host)] if host else [one.prefix for one in self._store.hosts()]

    def _state_of(self, prefix: str, now: datetime) -> GrantState:
        """Fold what the newest ledger of a host says of what is open."""
        heads = self._store.heads(prefix)
        if not heads:
            return GrantState()
        origin, size = heads[-1].origin, heads[-1].size
        before, floor = self._floors.get(prefix, ("", 0))
        state = GrantState()
        for raw in self._store.about_grants(origin, floor if before == origin else 0, MAX_READ):
            try:
                state.apply(parse(raw))
            except LedgerError:
                continue
        wanted = [row.seq for row in state.rows.values() if row.state(now) in SHOWN]
        wanted += [debt.seq for debt in state.debts.values() if debt.reviewed_by is None]
        self._floors[prefix] = origin, min(wanted, default=size)
        return state

    def _requests_of(self, prefix: str, now: datetime) -> List[Dict[str, Any]]:
        told = []
        for row in self._state_of(prefix, now).rows.values():
            if row.state(now) not in SHOWN:
                continue
            try:
                namespace = read_request(row.request.raw).namespace
            except CryptoError:
                continue
            shown = row.in_full(now, namespace)
            del shown["live"]  # no ends of sessions were read
            del shown["signatures"]  # whose they are stands there; the host has checked them
            told.append({"collected_from": prefix, **shown})
        return told

    def _debts_of(self, prefix: str, now: datetime) -> List[Dict[str, Any]]:
        now_ns, namespace = round(now.timestamp()) * 10**9, namespace_in(prefix)
        return [
            {"collected_from": prefix, **debt.to_json(now_ns, namespace)}
            for debt in self._state_of(prefix, now).debts.values()
            if debt.reviewed_by is None
        ]

    # -- what is sent

    def host(self, name: str) -> str:
        """Find the host of an id. Raises: Unknown"""
        for one in self._store.hosts():
            if host_id(one.prefix) == name:
                return one.prefix
        raise Unknown("no such host is enrolled")

    def put(self, prefix: str, sender: str, body: bytes, now_s: int) -> bool:
        """Keep an item for a host; say whether it is new. Raises: TooLarge"""
        return self._box.put(prefix, sender, body, now_s)

    def waiting(self, prefix: str, now_s: int) -> List[bytes]:
        return self._box.waiting(prefix, MAX_FETCH, now_s)

    def answer(self, prefix: str, name: str) -> Answer:
        """Say what became of an item. Raises: Unknown"""
        found = self._box.answer(prefix, name)
        if found is None:
            raise Unknown("no such item")
        return found

    def settle(self, prefix: str, name: str, ok: bool, words: str, now_s: int) -> None:
        self._box.settle(prefix, name, ok, words, now_s)


def _in_turn(hosts: Iterable[List[Dict[str, Any]]]) -> List[Dict[str, Any]]:
    """Take the first of each host, then the second of each: none keeps others from being seen."""
    found: List[Dict[str, Any]] = []
    room = MAX_LISTED
    for one in chain.from_iterable(zip_longest(*hosts)):
        size = 0 if one is None else len(json.dumps(one))
        if one is None or size > min(room, MAX_ROW):
            continue
        if len(found) == MAX_REQUESTS:
            break
        found.append(one)
        room -= size
    return found


def host_id(prefix: str) -> str:
    """Name the mailbox of a host in a path."""
    return hashlib.sha256(prefix.encode()).hexdigest()
