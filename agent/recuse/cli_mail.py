"""Requests and approvals at a collector, for approvers who have no account on the host."""

from __future__ import annotations

import hashlib
import http.client
import json
import time
import urllib.error
import urllib.request
from email.utils import parsedate_to_datetime
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from recuse import httpsig, mail, records
from recuse.cast import printable
from recuse.connections import trust
from recuse.errors import (
    AccessDenied,
    CollectorError,
    CryptoError,
    GrantError,
    LedgerError,
    NotFound,
)
from recuse.grant import namespace_of, read_request

TIMEOUT_S = 60.0
MAX_ANSWER = 16 << 20

Sign = Callable[[bytes, str], str]
"""Sign bytes in a namespace; give the armored signature."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *told: Any, **more: Any) -> None:
        return None


class Collector:
    """A collector, as an approver sees it. Nothing that it says is believed but what is signed."""

    def __init__(self, url: str, ca: Optional[str], sign: Sign) -> None:
        """`sign` is what lets in there. Raises: CollectorError"""
        self._url = url.rstrip("/")
        self._sign = sign
        self._who: Optional[Tuple[str, str, int]] = None
        if not self._url.startswith("https://"):
            raise CollectorError(f"{self._url} is no https:// address of a collector")
        https = urllib.request.HTTPSHandler(context=trust(ca, CollectorError))
        self._opener = urllib.request.build_opener(https, _NoRedirect)

    def requests(self) -> Iterator[Dict[str, Any]]:
        """Give what waits or has not expired, in the words of the bytes that are signed.

        What the collector adds is how it stands, and which host it has that from.
        """
        _, found = self._ask("GET", "/v1/requests")
        rows = found.get("requests") if isinstance(found, dict) else None
        for row in rows if isinstance(rows, list) else ():
            try:
                yield _read_row(row)
            except (CryptoError, KeyError, TypeError, AttributeError):
                continue

    def debts(self) -> Iterator[Dict[str, Any]]:
        """Give the reviews that are owed, in the words of the bytes that are signed."""
        _, found = self._ask("GET", "/v1/debts")
        rows = found.get("debts") if isinstance(found, dict) else None
        for row in rows if isinstance(rows, list) else ():
            try:
                yield _read_debt(row)
            except (CryptoError, LedgerError, KeyError, TypeError, AttributeError):
                continue

    def send(self, host: str, item: mail.Item) -> Dict[str, Any]:
        """Send something to a host, by its prefix, and wait a while for what it says to it.

        Raises: GrantError if the host refuses it
        """
        body = mail.write_item(item)
        name, path = mail.item_id(body), "/v1/mailbox/" + hashlib.sha256(host.encode()).hexdigest()
        self._ask("POST", path, body)
        _, told = self._exchange("GET", f"{path}/{name}", b"", {})
        ok = told.get("ok") if isinstance(told, dict) else None
        words = told.get("words") if isinstance(told, dict) else None
        words = words if isinstance(words, str) else ""
        if ok is False:
            raise GrantError(f"{host} refuses it: {words}")
        return {"host": host, "item": name, "taken": ok is True, "words": words}

    def _ask(self, method: str, path: str, body: bytes = b"") -> Tuple[Optional[int], Any]:
        if self._who is None:
            self._who = self._introduce()
        vkey, org, skew_s = self._who
        created_s = int(time.time()) + skew_s
        text = mail.access_text(vkey, method, path, created_s, hashlib.sha256(body).hexdigest())
        signature = self._sign(text, mail.access_namespace(org))
        return self._exchange(
            method,
            path,
            body,
            {
                "Authorization": mail.write_access(created_s, signature),
                "Content-Digest": httpsig.content_digest(body),
                "Content-Type": httpsig.OCTETS,
            },
        )

    def _introduce(self) -> Tuple[str, str, int]:
        """Learn which collector that is, and how far its clock is from ours."""
        date, told = self._exchange("GET", "/v1/status", b"", {})
        vkey = told.get("collector") if isinstance(told, dict) else None
        org = told.get("org") if isinstance(told, dict) else None
        if not isinstance(vkey, str) or not isinstance(org, str) or not org.isprintable():
            raise CollectorError(f"{self._url} is no collector that keeps mail")
        return vkey, org, 0 if date is None else date - int(time.time())

    def _exchange(
        self, method: str, path: str, body: bytes, headers: Dict[str, str]
    ) -> Tuple[Optional[int], Any]:
        """Send one request; give the time that the answer states, and what it says."""
        request = urllib.request.Request(
            self._url + path, data=body or None, headers=headers, method=method
        )
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as response:
                date, answer = response.headers.get("Date"), response.read(MAX_ANSWER + 1)
        except urllib.error.HTTPError as error:
            with error:
                raise self._error(error.code, error.read(MAX_ANSWER)) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            told = getattr(error, "reason", None) or error
            raise CollectorError(f"{self._url} cannot be reached: {told}") from None
        if len(answer) > MAX_ANSWER:
            raise CollectorError(f"{self._url} answers more than {MAX_ANSWER} bytes")
        return _unix(date), _json(answer)

    def _error(self, status: int, answer: bytes) -> Exception:
        found = _json(answer)
        detail = str(found.get("detail")) if isinstance(found, dict) else "no detail"
        message = f"{self._url} answers {status}: {printable(detail[:300])}"
        if status in (401, 403):
            return AccessDenied(message, "is your key in collector-approvers there?")
        return CollectorError(message)


def _unix(date: Optional[str]) -> Optional[int]:
    try:
        return int(parsedate_to_datetime(date or "").timestamp())
    except (TypeError, ValueError, OverflowError):
        return None


def _json(answer: bytes) -> Any:
    try:
        return json.loads(answer)
    except (ValueError, RecursionError):
        return None


def _read_row(row: Any) -> Dict[str, Any]:
    """Read one request as a collector shows it. Raises: CryptoError and what wrong types raise"""
    raw: str = row["request"]
    wanted = read_request(raw.encode())
    asked, approvals = wanted.asked, row["approvals"]
    numbers = [row["left"], row["approvers"], row["missing"]]
    if wanted.id != row["grant"] or not all(type(one) is int for one in numbers):
        raise CryptoError("it is shown under another id")
    return {
        "grant": wanted.id,
        "collected_from": str(row["collected_from"]),
        "state": str(row["state"]),
        "user": asked.user,
        "requester": asked.requester,
        "host": asked.host,
        "level": asked.level,
        "reason": asked.reason,
        "ticket": asked.ticket,
        "why": asked.why,
        "uses": asked.uses,
        "left": numbers[0],
        "expires": records.format_time(round(asked.expires.timestamp()) * 10**9),
        "approvers": numbers[1],
        "missing": numbers[2],
        "approvals": [{"principal": str(one["principal"])} for one in approvals],
        "imported": row.get("imported") is True,
        "request": raw,
        "namespace": wanted.namespace,
    }


def _read_debt(row: Any) -> Dict[str, Any]:
    """Read one debt as a collector shows it. Raises: CryptoError and what wrong types raise"""
    told = mail.read_review(row["statement"].encode())
    due_ns = records.parse_time(row["due"])
    if told.debt != row["debt"]:
        raise CryptoError("it is shown under another id")
    return {
        "debt": told.debt,
        "collected_from": str(row["collected_from"]),
        "user": told.user,
        "host": told.host,
        "why": told.why,
        "due": records.format_time(due_ns),
        "reviewed_by": None,
        "overdue": row.get("overdue") is True,
        "statement": row["statement"],
        "namespace": namespace_of(told.org),
    }


def statement_of(kind: str, one: Dict[str, Any], words: str) -> str:
    """Write what is signed to end a request that a collector shows."""
    wanted = read_request(one["request"].encode())
    digest = hashlib.sha256(one["request"].encode()).hexdigest()
    told = mail.Statement(kind, wanted.id, wanted.org, wanted.asked.host, digest, words)
    return mail.write_statement(told).decode()


def choose(found: List[Dict[str, Any]], name: str, what: str = "grant") -> Dict[str, Any]:
    """Find the one request, or debt, of that id or with that beginning. Raises: NotFound"""
    if len(name) >= 4:
        found = [one for one in found if one[what].startswith(name)]
    if len(name) >= 4 and len(found) == 1:
        return found[0]
    if what == "debt":
        told = "no review %s is owed there" % printable(name)
        raise NotFound(told, "list them: recuse grants --debts --collector URL")
    told = "no request %s waits there, and no grant of that id holds" % printable(name)
    raise NotFound(told, "list them: recuse requests --collector URL")
