"""Whose word counts: the files of approvers and of revoked keys, and passwords.

Part of the agent. The files are read again when they change; a fault in one means that nobody's
signature counts.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Tuple, TypeVar

from . import sshsig
from .approval import Asked
from .config import Paths, read_trusted
from .errors import GrantError, RecuseError
from .grantrecords import MAX_REQUEST_BYTES, Request
from .records import format_time, parse_time
from .sshsig import AllowedSigners, RevokedKeys

SERVICE = "recuse-approve"
"""PAM service for passwords of approvers."""

_T = TypeVar("_T")
_Stamp = Tuple[int, int, int]


class Unusable(GrantError):
    """A file that says whose signatures count cannot be used: nobody's does."""


@dataclass(frozen=True)
class Signed:
    """Who has signed, and how."""

    principal: str
    key: str  # fingerprint
    key_type: str
    verified: bool  # by PIN or finger
    also: Tuple[str, ...] = ()  # other names that the same key goes by


class Approvers:
    """The approvers of this host."""

    def __init__(self, paths: Paths, max_age: Callable[[], Optional[int]]) -> None:
        """`max_age` says how many seconds old the list of revoked keys may be."""
        self._paths = paths
        self._kept: Dict[Path, Tuple[_Stamp, Any]] = {}
        self._max_age = max_age

    @staticmethod
    def namespace(org: str) -> str:
        return f"recuse-grant@{org}"

    @staticmethod
    def digest(raw: bytes) -> str:
        return hashlib.sha256(raw).hexdigest()

    def _load(self, path: Path, parse: Callable[[bytes, str], _T]) -> Optional[_T]:
        """Read a file, if it is not the one read last; None if there is none.

        Raises: RecuseError, with every fault
        """
        try:
            found = os.stat(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Unusable(f"{path}: {error.strerror}") from None
        stamp = found.st_mtime_ns, found.st_ino, found.st_size
        kept = self._kept.get(path)
        if kept is None or kept[0] != stamp:
            try:
                kept = stamp, parse(read_trusted(path), str(path))
            except FileNotFoundError:
                return None
            except RecuseError as error:
                faults = "; ".join(map(str, getattr(error, "faults", ())))
                raise Unusable(
                    f"{error.message}: {faults}" if faults else error.message,
                    f"nobody's signature counts until {path} is right",
                ) from None
            self._kept[path] = kept
        found_there: _T = kept[1]
        return found_there

    def check(self, raw: bytes, armored: str, now: datetime, org: str) -> Signed:
        """Say who signed some bytes as an approver.

        Raises: RecuseError that says why the signature does not count
        """
        signers = self._load(self._paths.approvers, AllowedSigners.parse)
        if signers is None:
            raise Unusable(
                f"{self._paths.approvers} does not exist: nobody can approve",
                "list the keys of approvers there: recuse-approval(5)",
            )
        revoked = self._load(self._paths.revoked_keys, RevokedKeys.parse)
        self._check_age(revoked, now)
        namespace = self.namespace(org)
        found = sshsig.verify(raw, armored.encode(), signers, namespace, now, revoked)
        return Signed(
            found.principals[0], found.key.fingerprint, found.key.type,
            bool(found.user_verified), found.principals[1:],
        )  # fmt: skip

    def _check_age(self, revoked: Optional[RevokedKeys], now: datetime) -> None:
        max_age = self._max_age()
        if max_age is None:
            return
        path = self._paths.revoked_keys
        try:
            made = os.stat(path).st_mtime
        except OSError:
            raise Unusable(
                f"{path} is not there, and must not be older than {max_age} s"
            ) from None
        if revoked is not None and revoked.generated is not None:
            made = min(made, revoked.generated)
        if now.timestamp() - made > max_age:
            raise Unusable(
                f"{path} is older than {max_age} s: which keys are revoked is not "
                "known", "bring it up to date, or touch it if it is",
            )  # fmt: skip

    @staticmethod
    def password_holds(user: str, password: str) -> bool:
        """Ask PAM whether that is somebody's password. Slow."""
        from pam import PamAuthenticator

        return bool(PamAuthenticator().authenticate(user, password, SERVICE, resetcreds=False))

    # -- what is signed --------------------------------------------------------------

    def make_request(
        self, name: str, asked: Asked, uid: int, source: Optional[str], issued: datetime, org: str
    ) -> Request:
        """Write down what somebody asks for, in the bytes that approvers sign.

        Raises: GrantError if it is too long
        """
        fields = {
            "recuse": "request/1",
            "id": name,
            "org": org,
            "host": asked.host,
            "user": asked.user,
            "uid": uid,
            "requester": asked.requester,
            "level": asked.level,
            "supervised": asked.supervised,
            "source": source,
            "issued": _written(issued),
            "not_before": _written(asked.not_before),
            "expires": _written(asked.expires),
            "uses": asked.uses,
            "max_seconds": asked.max_seconds,
            "reason": asked.reason,
            "ticket": asked.ticket,
            "why": asked.why,
        }
        present = {key: value for key, value in fields.items() if value is not None}
        raw = json.dumps(present, ensure_ascii=False, indent=1).encode() + b"\n"
        if len(raw) > MAX_REQUEST_BYTES:
            raise GrantError(f"a request of {len(raw)} bytes is too long", "say it in fewer words")
        return Request(name, raw, asked, uid, -1, source)

    def read_request(self, raw: bytes, org: str) -> Tuple[Request, datetime]:
        """Read what make_request() wrote. Raises: GrantError"""
        try:
            told = json.loads(raw.decode("utf-8"))
            if told["recuse"] != "request/1":
                raise ValueError
            asked = Asked(
                user=told["user"], requester=told["requester"], host=told["host"],
                level=told["level"], not_before=_read(told["not_before"]),
                expires=_read(told["expires"]), uses=told["uses"], reason=told["reason"],
                ticket=told.get("ticket"), why=told["why"], max_seconds=told.get("max_seconds"),
                supervised=told["supervised"],
            )  # fmt: skip
            issued, name, uid = _read(told["issued"]), told["id"], told["uid"]
            source = told.get("source")
        except (ValueError, KeyError, TypeError, RecursionError, RecuseError):
            raise GrantError("that is no request of recuse") from None
        if told.get("org") != org:
            raise GrantError(f"it is for organisation {told.get('org')!r}, and this is {org}")
        again = self.make_request(name, asked, uid, source, issued, org)
        if again.raw != raw:
            raise GrantError("that is no request of recuse: it is not written as one")
        return again, issued

    def make_statement(self, request: Request, org: str) -> bytes:
        """Write down what the reviewer of a debt signs."""
        fields = {
            "recuse": "review/1",
            "debt": request.id,
            "org": org,
            "host": request.asked.host,
            "user": request.asked.user,
            "request_sha256": request.digest,
            "why": request.asked.why,
        }
        return json.dumps(fields, ensure_ascii=False, indent=1).encode() + b"\n"


def _written(time: datetime) -> str:
    return format_time(round(time.timestamp()) * 10**9)[:19] + "Z"


def _read(written: str) -> datetime:
    return datetime.fromtimestamp(parse_time(written) // 10**9, timezone.utc)
