"""Evidence of one session as a folder that anybody can check: BagIt (RFC 8493), with a README.

Pure: sources hand over bytes, and the folder is a table of names and bytes. Whoever checks it needs
no part of recuse; what its README says is tried word by word by the tests.
"""

from __future__ import annotations

import hashlib
import shlex
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Callable, Dict, List, Optional, Sequence

from . import amounts, records
from .audit import Source, split_epoch
from .cast import printable
from .checkpoint import (
    Checkpoint,
    HashReader,
    Note,
    Proof,
    inclusion_proof,
    leaf_hash,
    read_leaves,
)
from .errors import CryptoError, LedgerError, NotFound
from .grant import namespace_of, read_request
from .grantrecords import KINDS, Approval, GrantRow, fold_grants
from .records import Entry, SegmentRow, SessionRow

Files = Dict[str, bytes]


@dataclass
class _Ledger:
    """One ledger with what of it concerns the session."""

    source: Source
    entries: List[Entry] = field(default_factory=list)
    raws: Dict[int, bytes] = field(default_factory=dict)
    leaves: List[bytes] = field(default_factory=list)


def make_bundle(
    row: SessionRow,
    sources: Sequence[Source],
    blob: Callable[[str], Optional[bytes]],
    now: datetime,
    *,
    approvers: Optional[bytes] = None,
    host_key: Optional[str] = None,
) -> Files:
    """Put together what there is of one session; names are paths in the folder.

    Raises: NotFound if no ledger has it, LedgerError
    """
    ledgers = [ledger for ledger in (_read(source, row) for source in sources) if ledger.entries]
    if not ledgers:
        raise NotFound(f"no ledger has entries of session {row.session}")
    files: Files = {}
    entries: List[Entry] = []
    unproved = 0
    for ledger in ledgers:
        entries += ledger.entries
        unproved += _add_ledger(files, ledger)
    segments = _add_recording(files, row, entries, blob)
    grant = fold_grants(entries).rows.get(row.grant or "")
    signatures = _add_grant(files, grant, approvers)
    if host_key is not None:
        files["data/host.pub"] = f"{host_key.strip()}\n".encode()
    readme = _readme(row, grant, signatures, segments, unproved, files)
    return _bag(files, readme, row, now)


def _read(source: Source, row: SessionRow) -> _Ledger:
    found = _Ledger(source)
    for index, raw, leaf in source.entries():
        if raw is None and leaf is None:
            raise LedgerError(f"entry {index} of {source.origin} is missing: see recuse verify")
        if index != len(found.leaves):
            raise LedgerError(f"entries before {index} of {source.origin} are missing")
        found.leaves.append(leaf_hash(raw) if raw is not None else leaf or b"")
        if raw is None:
            continue
        try:
            entry = records.parse(raw)
        except LedgerError:
            continue
        if _concerns(entry, row):
            found.entries.append(entry)
            found.raws[index] = raw
    return found


def _concerns(entry: Entry, row: SessionRow) -> bool:
    session = entry.get("session")
    if session is not None:
        return session == row.session
    if entry.kind in ("login", "logout"):
        return row.login is not None and entry.get("login") == row.login
    return entry.kind in KINDS and row.grant is not None and entry.get("grant") == row.grant


def _add_ledger(files: Files, ledger: _Ledger) -> int:
    """Add entries and proofs; give how many entries no checkpoint covers."""
    name = f"epoch-{split_epoch(ledger.source.origin)[1]}"
    note = ledger.source.checkpoint()
    size, unproved = 0, 0
    read: HashReader = read_leaves(ledger.leaves)
    if note is not None:
        files[f"data/{name}/checkpoint"] = note
        size = Checkpoint.parse(Note.parse(note).text).size
    for number, receipt in enumerate(ledger.source.receipts()):
        files[f"data/{name}/receipt-{number}"] = receipt
    for index, raw in ledger.raws.items():
        files[f"data/{name}/{index:08}.json"] = raw
        if note is None or not index < size <= len(ledger.leaves):
            unproved += 1
            continue
        proof = Proof(index, tuple(inclusion_proof(index, size, read)), note)
        files[f"data/{name}/{index:08}.tlog-proof"] = proof.serialise()
    return unproved


def _add_recording(
    files: Files, row: SessionRow, entries: Sequence[Entry], blob: Callable[[str], Optional[bytes]]
) -> List[SegmentRow]:
    """Add segments, and the hashes that signed entries have of them."""
    sums: List[str] = []
    for segment in row.segments:
        path = f"data/segments/{segment.n:06}.gz"
        data = blob(segment.blob)
        if data is None:
            raise NotFound(
                f"segment {segment.n} of {row.session} is not here", "see: recuse verify"
            )
        files[path] = data
        sums.append(f"{segment.blob}  {path}\n")
    if sums:
        files["data/segments.sha256"] = "".join(sums).encode()
        digests = [entry.get("digest") for entry in entries if entry.kind == "close"]
        if digests and digests[-1]:
            files["data/recording.sha256"] = f"{digests[-1]}  recording.cast\n".encode()
    return list(row.segments)


def _add_grant(
    files: Files, grant: Optional[GrantRow], approvers: Optional[bytes]
) -> Dict[str, Approval]:
    """Add request and signatures; give the signatures by their path."""
    if grant is None:
        return {}
    files["data/request.json"] = grant.request.raw
    files["data/request.sha256"] = f"{grant.request.digest}  data/request.json\n".encode()
    signatures: Dict[str, Approval] = {}
    for approval in grant.approvals:
        if approval.signature is not None:
            path = f"data/signatures/{len(signatures) + 1}.sig"
            files[path] = approval.signature.encode("utf-8", "backslashreplace")
            signatures[path] = approval
    if approvers is not None and signatures:
        files["data/allowed_signers"] = approvers
    return signatures


def _bag(files: Files, readme: str, row: SessionRow, now: datetime) -> Files:
    """Add what makes a bag of files (RFC 8493)."""
    payload = {path: data for path, data in files.items() if path.startswith("data/")}
    octets = sum(map(len, payload.values()))
    info = (
        f"Bagging-Date: {now:%Y-%m-%d}\nExternal-Identifier: {printable(row.session)}\n"
        f"Payload-Oxum: {octets}.{len(payload)}\n"
    )
    tags = {
        "bagit.txt": b"BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n",
        "bag-info.txt": info.encode(),
        "README.md": readme.encode(),
        "manifest-sha256.txt": _manifest(payload),
    }
    return {**payload, **tags, "tagmanifest-sha256.txt": _manifest(tags)}


def _manifest(files: Files) -> bytes:
    lines = [f"{hashlib.sha256(data).hexdigest()}  {path}\n" for path, data in files.items()]
    return "".join(sorted(lines, key=lambda line: line[66:])).encode()


_PROOFS = r"""
python3 - <<'END'
import base64, glob, hashlib
h = lambda data: hashlib.sha256(data).digest()
for path in sorted(glob.glob("data/epoch-*/*.tlog-proof")):
    head, _, note = open(path).read().partition("\n\n")
    lines = head.split("\n")[1:]
    index = int(lines.pop(0).split()[1])
    origin, size, root = note.split("\n")[:3]
    at, last = index, int(size) - 1
    found = h(b"\0" + open(path.replace("tlog-proof", "json"), "rb").read())
    for one in map(base64.b64decode, lines):
        assert last > 0, path
        if at & 1 or at == last:
            found = h(b"\1" + one + found)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            found = h(b"\1" + found + one)
        at, last = at >> 1, last >> 1
    assert last == 0 and found == base64.b64decode(root), path
    print("entry", index, "is in", origin, "of", size, "entries")
END
"""


def _readme(
    row: SessionRow,
    grant: Optional[GrantRow],
    signatures: Dict[str, Approval],
    segments: Sequence[SegmentRow],
    unproved: int,
    files: Files,
) -> str:
    """Write what to do with the folder, from the shell of any system."""
    parts: List[str] = [f"# Evidence of session {printable(row.session)}\n"]

    def say(words: str, command: str = "") -> None:
        parts.append(words + (f"\n\n```sh\n{command.strip()}\n```\n" if command else "\n"))

    say(
        "All commands are run in this folder. The first shows that the folder is whole:",
        "sha256sum -c --quiet manifest-sha256.txt tagmanifest-sha256.txt",
    )
    say(
        "`data/epoch-N/INDEX.json` are the entries of the host's ledger that speak of this "
        "session, byte by byte. Each has a proof (C2SP tlog-proof) that it is in the ledger that "
        "the checkpoint sums up:",
        _PROOFS,
    )
    if unproved:
        newer = amounts.number(unproved, "entry", "entries")
        say(f"Of {newer} newer than the checkpoint there is no proof yet.")
    say(
        "What remains is that the host signed the checkpoint, and a collector its receipts: any "
        "tool for signed notes (C2SP signed-note) says so. The host's public key has to come from "
        "a place that you trust; `data/host.pub` is only what lay beside the ledger."
    )
    if segments:
        say(
            "The recording. Signed entries have the hash of each segment:",
            "sha256sum -c --quiet data/segments.sha256",
        )
        unpack = "zcat data/segments/*.gz > recording.cast"
        if "data/recording.sha256" in files:
            unpack += "\nsha256sum -c --quiet data/recording.sha256"
        say("and of the whole, which is asciicast v2, for any player:", unpack)
    elif row.verdict == "exempt":
        say("The session was exempt: there is no recording, and there never was one.")
    if grant is not None:
        asked = grant.request.asked
        say(
            f"It was exempt by grant `{printable(grant.id)}`. `data/request.json` is what was "
            "asked for and approved; it has the hash that the entries have:",
            "sha256sum -c --quiet data/request.sha256",
        )
        say(
            f"The entry of the request says that {grant.request.approvers} people had to approve, "
            f"other than `{printable(asked.requester)}`, who asked, and "
            f"`{printable(asked.user)}`, whom it is for."
        )
    if grant is not None and signatures:
        at = datetime.fromtimestamp(records.parse_time(row.started or "") // 10**9, timezone.utc)
        namespace = shlex.quote(printable(namespace_of(_org(grant.request.raw))))
        commands = [
            f"ssh-keygen -Y verify -f data/allowed_signers "
            f"-I {shlex.quote(printable(one.principal))} -n {namespace} "
            f"-Overify-time={at:%Y%m%d%H%M%SZ} -s {path} < data/request.json"
            for path, one in signatures.items()
        ]
        if "data/allowed_signers" in files:
            say(
                "Each approval is a signature over it, checked as of the session's begin. Compare "
                "`data/allowed_signers` with what you know of the approvers, or use your own:",
                "\n".join(commands),
            )
        else:
            say(
                "Each approval is a signature over it in `data/signatures`. No file of approvers "
                "lay beside the ledger: put yours here as `data/allowed_signers`, and run"
            )
            parts.append("".join(f"    {command}\n" for command in commands))
        say(
            "ssh-keygen does not ask whether somebody touched a security key; "
            "`recuse verify --approvers` does."
        )
    return "\n".join(parts)


def _org(raw: bytes) -> str:
    try:
        return read_request(raw).org
    except CryptoError as error:
        raise LedgerError(f"the request is none: {error.message}") from None
