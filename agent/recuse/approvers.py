"""Whose word counts: the files of approvers and of revoked keys.

Part of the agent. The files are read again when they change; a fault in one means that nobody's
signature counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Callable, Dict, FrozenSet, Optional, Sequence, Tuple, TypeVar

from . import grant, mail, sshsig
from .approval import ApprovalPolicy, Asked
from .config import Paths, read_trusted
from .errors import CryptoError, GrantError, RecuseError
from .grant import Wanted
from .grantrecords import Approval, Basis, Request
from .sshsig import AllowedSigners, RevokedKeys

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
    counter: Optional[int] = None  # of a security key
    also: Tuple[str, ...] = ()
    """Other names that the key goes by: in its certificate, or without it."""


class Approvers:
    """The approvers of this host."""

    def __init__(self, paths: Paths, policy: Callable[[], ApprovalPolicy]) -> None:
        self._paths = paths
        self._kept: Dict[Path, Tuple[_Stamp, Any]] = {}
        self._policy = policy

    @staticmethod
    def namespace(org: str) -> str:
        return grant.namespace_of(org)

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
        signers, revoked = self._read_files(now)
        namespace = self.namespace(org)
        found = sshsig.verify(
            raw, armored.encode(), signers, namespace, now, revoked, self._policy().origins
        )
        also = {*found.principals[1:], *signers.holders(found.key)} - {found.principals[0]}
        return Signed(
            found.principals[0], found.key.fingerprint, found.key.type,
            bool(found.user_verified), found.counter, tuple(sorted(also)),
        )  # fmt: skip

    def check_grant(
        self,
        request: Request,
        approvals: Sequence[Approval],
        terms: grant.Terms,
        now: datetime,
        org: str,
        accounts_of: Callable[[str], FrozenSet[str]],
    ) -> grant.Checked:
        """Say how many people have approved a request, by the files as they are now.

        Raises: Unusable
        """
        signers: Optional[AllowedSigners] = None
        revoked: Optional[RevokedKeys] = None
        if any(one.method == "signature" for one in approvals):
            signers, revoked = self._read_files(now)
        return grant.check_grant(
            request, approvals, signers, terms, self.namespace(org), now, revoked, accounts_of
        )

    def basis(self, policy: str) -> Basis:
        """Name what is in force; files that cannot be used are not."""
        signers: Optional[AllowedSigners] = None
        revoked: Optional[RevokedKeys] = None
        with contextlib.suppress(Unusable):
            signers = self._load(self._paths.approvers, AllowedSigners.parse)
            revoked = self._load(self._paths.revoked_keys, RevokedKeys.parse)
        return Basis(
            policy,
            None if signers is None else signers.digest,
            None if revoked is None else revoked.digest,
        )

    def _read_files(self, now: datetime) -> Tuple[AllowedSigners, Optional[RevokedKeys]]:
        signers = self._load(self._paths.approvers, AllowedSigners.parse)
        if signers is None:
            raise Unusable(
                f"{self._paths.approvers} does not exist: nobody can approve",
                "list the keys of approvers there: recuse-approval(5)",
            )
        revoked = self._load(self._paths.revoked_keys, RevokedKeys.parse)
        self._check_age(revoked, now)
        return signers, revoked

    def _check_age(self, revoked: Optional[RevokedKeys], now: datetime) -> None:
        max_age = self._policy().revoked_max_age_seconds
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

    # -- what is signed --------------------------------------------------------------

    def make_request(
        self, name: str, asked: Asked, uid: int, source: Optional[str], issued: datetime, org: str
    ) -> Request:
        """Write down what somebody asks for, in the bytes that approvers sign.

        Raises: CryptoError if it cannot be
        """
        wanted = Wanted(name, org, asked, uid, source, issued)
        return Request(name, grant.write_request(wanted), asked, uid, -1, source)

    def read_request(self, raw: bytes, org: str) -> Tuple[Request, datetime]:
        """Read what make_request() wrote. Raises: GrantError"""
        try:
            wanted = grant.read_request(raw)
        except CryptoError as error:
            raise GrantError(f"that is no request of recuse: {error.message}") from None
        if wanted.org != org:
            raise GrantError(f"it is for organisation {wanted.org!r}, and this is {org}")
        request = Request(wanted.id, raw, wanted.asked, wanted.uid, -1, wanted.source)
        return request, wanted.issued

    def make_statement(self, request: Request, org: str) -> bytes:
        """Write down what the reviewer of a debt signs."""
        asked = request.asked
        told = mail.Review(request.id, org, asked.host, asked.user, request.digest, asked.why)
        return mail.write_review(told)
