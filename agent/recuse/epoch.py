"""Which ledger the agent writes: the one there is, or the next epoch if that cannot go on.

Part of the agent. Two things end an epoch. The ledger is damaged: what was signed is not there any
more. Or it was set back: central storage has attested more of it, or another one, than is here, and
whatever is signed now under the same name contradicts what was signed before. Either way the files
stay beside, as ledger.EPOCH, and the first entry of the new ledger says what it follows.

renewal.json is written first and removed when everything that lives is entered again, however many
starts that takes; so being killed anywhere in between costs nothing.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Tuple

from . import files, keys
from .checkpoint import Checkpoint, Note, Signer
from .config import Config, Paths
from .errors import CryptoError, LedgerError, RecuseError
from .host import Kernel
from .journal import Journal
from .ledger import Ledger, LedgerInUse, LedgerReader
from .receipts import central_key, contradiction, newest_attested, split_origin
from .records import parse

# What the kernel says of a damaged disk, and of files that are not what they were. Anything else
# (no space, no permission) would hit the next epoch just as well.
DAMAGE = frozenset({
    errno.EIO, errno.EUCLEAN, errno.EBADMSG, errno.ENODATA, errno.ENOTDIR, errno.EISDIR,
    errno.ELOOP, errno.ENOENT,
})  # fmt: skip


@dataclass(frozen=True)
class Opened:
    """A ledger to go on with, and what its start entry has to say.

    `renewed` is whether what lives may still have to be entered into it.
    """

    ledger: Ledger
    why: str = "started"
    previous: Optional[Mapping[str, Any]] = None
    renewed: bool = False


def open_ledger(paths: Paths, config: Config, kernel: Kernel, journal: Journal) -> Opened:
    """Open the ledger that is to be written, or begin the next.

    The name is kept once it is chosen: a host that is renamed does not begin anew unless
    recuse.toml says so.

    Raises: RecuseError if there is none to be had, and another epoch would not help.
    """
    name = config.host.name or _origin_name(kernel.hostname())
    epoch, known = _read_epoch(paths)
    prefix = f"{config.host.org}/recuse/host/{name}"
    if known and not config.host.name and known.startswith(f"{config.host.org}/recuse/host/"):
        prefix = known
    if known and known != prefix:
        here = _stated(paths, f"{known}/{epoch}")
        return _begin(paths, kernel, journal, prefix, here, "the host has another name")
    origin = f"{prefix}/{epoch}"
    told = _read_renewal(paths, origin)
    if told is not None:
        _move_aside(paths, origin)  # what was begun is carried on
    there = _attested(paths, config, journal)
    try:
        ledger = _open_in_need(paths, origin, kernel)
    except LedgerInUse:
        raise  # by the agent that runs: its ledger must not be moved away under it
    except LedgerError as error:
        if not _is_damage(error):
            raise
        here = _stated(paths, origin)
        if there is not None and _order(_json(there)) > _order(here):
            here = {**_json(there), "given_up": here}
        return _begin(paths, kernel, journal, prefix, here, error.message)
    why = contradiction(ledger, there) if there is not None else None
    if there is not None and why is not None:
        given_up = {"origin": origin, "size": ledger.size, "root": ledger.root().hex()}
        ledger.close()
        previous = {**_json(there), "given_up": given_up}
        return _begin(paths, kernel, journal, prefix, previous, why, "ledger-set-back")
    try:
        _write_epoch(paths, epoch, prefix)
    except LedgerError:
        ledger.close()
        raise
    if told is None:
        return Opened(ledger)
    if ledger.size:
        return Opened(ledger, renewed=True)
    return Opened(ledger, told["why"], told["previous"], True)


def given_up(paths: Paths, origin: str) -> Optional[Tuple[LedgerReader, int]]:
    """Find the ledger that was given up for this one, while what it has is not entered yet.

    Gives how many entries it has, too.
    """
    told = _read_renewal(paths, origin)
    wanted = told["previous"].get("given_up") if told is not None else None
    if not isinstance(wanted, dict):
        return None
    for path in paths.state.glob("ledger.*"):
        if _checkpoint(path, "") == wanted:
            return LedgerReader(path), int(wanted["size"] or 0)
    return None


def end_renewal(paths: Paths) -> None:
    """Note that everything that lives is in the new ledger."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(paths.state / _RENEWAL)


def reopen_ledger(
    paths: Paths, origin: str, kernel: Kernel, acknowledged: Optional[int] = None
) -> Ledger:
    """Open the ledger that was open before; see Ledger.open() for what was not acknowledged.

    Raises: LedgerError, CryptoError
    """
    signer = host_signer(paths, origin)
    try:
        written = keys.read_vkey(paths.host_pub).vkey
    except RecuseError:
        written = ""
    if written != signer.vkey:
        keys.write_vkey(paths.host_pub, signer)
    return Ledger.open(str(paths.ledger), signer, kernel.now_ns(), acknowledged, _is_entry)


def _is_entry(raw: bytes, index: int) -> bool:
    try:
        return parse(raw).index == index
    except LedgerError:
        return False


def host_signer(paths: Paths, origin: str) -> Signer:
    """Read the key of this host, or make it.

    Raises: CryptoError, with what to do about it
    """
    try:
        return keys.load_or_create(paths.host_key, origin)
    except CryptoError as error:
        hint = error.hint or (
            "restore it from a backup, or move it away for a new one, with which this host must be "
            "enrolled anew"
        )
        raise CryptoError(error.message, hint) from error


# -- beginning an epoch ---------------------------------------------------------------


def _begin(
    paths: Paths,
    kernel: Kernel,
    journal: Journal,
    prefix: str,
    previous: Mapping[str, Any],
    why: str,
    event: str = "ledger-renewed",
) -> Opened:
    number = max(_order(previous)[0], _read_epoch(paths)[0]) + 1
    origin = f"{prefix}/{number}"
    told = {"origin": origin, "why": why, "previous": previous}
    _write(paths, _RENEWAL, json.dumps(told))
    with contextlib.suppress(FileNotFoundError):
        os.unlink(paths.state / "live-from")  # counts entries of the ledger before
    _write_epoch(paths, number, prefix)
    _move_aside(paths, origin)
    journal.write(event, origin=origin, fault=why)
    return Opened(_open_in_need(paths, origin, kernel), why, previous, True)


def _move_aside(paths: Paths, origin: str) -> None:
    """Put the ledger that is there beside, unless it is that of `origin`."""
    here = _stated(paths, "")
    if here["origin"] == origin or not os.path.lexists(paths.ledger):
        return
    if here["size"] is None and not (paths.ledger / "tile").exists():
        return  # begun, and never written to
    epoch = _order(here)[0] or _order({"origin": origin})[0] - 1
    aside = paths.ledger.with_name(f"ledger.{epoch}")
    while os.path.lexists(aside):
        aside = aside.with_name(aside.name + "+")
    try:
        os.rename(paths.ledger, aside)
        files.sync_directory(paths.state)
    except OSError as error:
        raise LedgerError(f"ledger {paths.ledger} cannot be moved: {error.strerror}") from error


def _open_in_need(paths: Paths, origin: str, kernel: Kernel) -> Ledger:
    """Open the ledger; on a full disk, with the space that is reserved for that."""
    try:
        return reopen_ledger(paths, origin, kernel)
    except LedgerError as error:
        if not _is_full(error):
            raise
    for directory in (paths.state, paths.spool):
        with contextlib.suppress(OSError):
            os.unlink(directory / "reserve")
    return reopen_ledger(paths, origin, kernel)


def _is_full(error: LedgerError) -> bool:
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)


def _is_damage(error: LedgerError) -> bool:
    cause = error.__cause__
    return not isinstance(cause, OSError) or cause.errno in DAMAGE


# -- what is known of ledgers ---------------------------------------------------------


def _attested(paths: Paths, config: Config, journal: Journal) -> Optional[Checkpoint]:
    try:
        return newest_attested(paths, central_key(paths, config.central))
    except RecuseError as error:
        journal.write("receipt-bad", file="checkpoint", fault=error.message)
        return None


def _stated(paths: Paths, origin: str) -> Dict[str, Any]:
    """Say what the checkpoint that is here says; `origin` and nothing if there is none."""
    return _checkpoint(paths.ledger, origin)


def _checkpoint(ledger: Path, origin: str) -> Dict[str, Any]:
    try:
        note = (ledger / "checkpoint").read_bytes()
        return _json(Checkpoint.parse(Note.parse(note).text))
    except (OSError, CryptoError):
        return {"origin": origin, "size": None, "root": None}


def _json(found: Checkpoint) -> Dict[str, Any]:
    return {"origin": found.origin, "size": found.size, "root": found.root.hex()}


def _order(told: Mapping[str, Any]) -> Tuple[int, int]:
    return split_origin(told["origin"])[1], told.get("size") or 0


# -- files ----------------------------------------------------------------------------

_RENEWAL = "renewal.json"


def _read_renewal(paths: Paths, origin: str) -> Optional[Dict[str, Any]]:
    """Read what is under way, if it is about this ledger."""
    try:
        told = json.loads((paths.state / _RENEWAL).read_bytes())
        if told["origin"] == origin and isinstance(told["why"], str):
            return {"why": told["why"], "previous": dict(told["previous"])}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return None


def _origin_name(text: str) -> str:
    kept = (c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in text)
    return "".join(kept) or "host"


def _read_epoch(paths: Paths) -> Tuple[int, str]:
    """Say which epoch it is and the rest of the origin; by the ledger if no file tells."""
    prefix, number = split_origin(_stated(paths, "")["origin"])
    with contextlib.suppress(OSError, ValueError):
        number = int(paths.epoch.read_text().strip())
    with contextlib.suppress(OSError, ValueError):
        prefix = paths.epoch.with_name("origin").read_text().strip()
    return max(number, 1), prefix


def _write_epoch(paths: Paths, epoch: int, prefix: str) -> None:
    for name, text in ((paths.epoch.name, str(epoch)), ("origin", prefix)):
        with contextlib.suppress(OSError, ValueError):
            if (paths.state / name).read_text().strip() == text:
                continue
        _write(paths, name, text)


def _write(paths: Paths, name: str, text: str) -> None:
    """Replace a file of the state directory as a whole, durably."""
    path = paths.state / name
    try:
        files.replace(path, text.encode() + b"\n")
        files.sync_directory(paths.state)
    except OSError as error:
        raise LedgerError(f"{path} cannot be written: {error.strerror}") from error
