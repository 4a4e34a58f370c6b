"""Verification: what a ledger, its checkpoint, receipts and recordings prove, and every fault.

Pure: an archive hands over bytes through the protocol Source; nothing it says is believed unless a
key in Trusted signed for it. Nothing stops at the first fault.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from dataclasses import dataclass, field
from typing import (
    Any,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    Optional,
    Protocol,
    Sequence,
    Set,
    Tuple,
    Union,
    cast,
)

from . import amounts, pauserecords
from .approval import ApprovalPolicy
from .cast import STREAM_CODES
from .checkpoint import (
    HASH_BYTES,
    TILE_WIDTH,
    TYPE_COSIGNER,
    TYPE_LOG,
    Checkpoint,
    Note,
    Verifier,
    leaf_hash,
    open_checkpoint,
    open_note,
    tree_root,
)
from .consistency import Consistency, event_differences, fact_differences
from .errors import CryptoError, LedgerError, RecuseError, count_faults
from .grantaudit import GrantAudit
from .marks import MAX_GAPS, add_gap, read_marks
from .records import (
    GAP_CAUSES,
    LEAST_ITEMS,
    OUTCOMES,
    Entry,
    Gap,
    Row,
    SessionRow,
    View,
    format_time,
    parse,
    parse_time,
)
from .sshsig import AllowedSigners, RevokedKeys
from .treeaudit import Head, Tree

OVERDUE_PERIODS = 2.5
"""Heartbeat periods without any entry from which silence is worth a warning."""
MAX_HEARTBEAT_SECONDS = 86400
"""What the configuration takes, at most."""
MAX_CLOCK_STEP_NS = 1_000_000_000
LONGEST_QUESTION_NS = 300 * 10**9
"""How long a user may take to agree, before the session is entered: twice what they have."""
LATE_NS = 60 * 10**9
"""How much later than it says something may be entered."""
MAX_PLAIN_BYTES = 64 << 20
"""No segment unpacks to more: the agent cuts at a fraction of that."""
MAX_HOLE = 1 << 20
"""Entries missing in a row that are still looked at one by one."""
BLOB_MODES = ("require", "present", "skip")
DECIDED = ("login", "open", "exempt", "refused")
"""Kinds of entries that say what was decided, and by which policy."""

Json = Dict[str, Any]
Item = Tuple[int, Optional[bytes], Optional[bytes]]


class Source(Protocol):
    """One ledger with what lies beside it, as an archive finds it; nothing here is trusted."""

    @property
    def origin(self) -> str:
        """Name the log by what its checkpoint says, or by where it lies."""

    @property
    def is_central(self) -> bool:
        """Say whether central storage is searched, too: a blob that is not there is nowhere."""

    def checkpoint(self) -> Optional[bytes]:
        """Give the newest checkpoint note."""

    def entries(self) -> Iterator[Item]:
        """Give (index, entry, stored leaf hash) in order; None for what is not there."""

    def tiles(self) -> Iterable[Tuple[str, int, int, bytes]]:
        """Give (name, level, number, bytes) of stored hash tiles above the leaves."""

    def receipts(self) -> Iterable[bytes]:
        """Give cosigned checkpoint notes that came back from collectors."""

    def blob_receipt(self, blob: str) -> Optional[bytes]:
        """Give the receipt for a blob."""

    def blob(self, blob: str) -> Optional[bytes]:
        """Give the bytes that go by that SHA-256."""


@dataclass(frozen=True)
class Trusted:
    """What the verifier brings along: keys from a trustworthy place, and what it remembers."""

    host: Verifier
    """The host's key; its name is the origin, or the origin without the epoch."""
    collectors: Tuple[Verifier, ...] = ()
    min_size: int = 0
    """The ledger was at least that long when it was last seen."""
    approvers: Optional[AllowedSigners] = None
    """Whose signatures count for exemptions."""
    revoked: Optional[RevokedKeys] = None
    approval_policies: Tuple[ApprovalPolicy, ...] = ()
    """What said who had to approve them, the newest last."""


@dataclass(frozen=True)
class AuditFault:
    """One thing that is wrong: which object, and what about it."""

    code: str
    object: str
    message: str
    index: Optional[int] = None
    session: Optional[str] = None

    def __str__(self) -> str:
        return f"{self.object}: {self.message}"

    def to_json(self) -> Json:
        """Give plain values."""
        return {
            "code": self.code,
            "object": self.object,
            "message": self.message,
            "index": self.index,
            "session": self.session,
        }


@dataclass
class Report:
    """The result for one ledger. Faults disprove something; warnings leave something unproved."""

    origin: str
    checked: bool = True
    """Whether it was looked at: without a key of its host nothing can be said of it."""
    entries: int = 0
    signed_size: Optional[int] = None
    root: Optional[str] = None
    receipted_size: int = 0
    faults: List[AuditFault] = field(default_factory=list)
    warnings: List[AuditFault] = field(default_factory=list)
    findings: List[AuditFault] = field(default_factory=list)
    """What the host's own coverage found: signed, and no fault of the ledger."""
    logins: int = 0
    sessions: int = 0
    live: int = 0
    recorded: int = 0
    partial: int = 0
    exempt: int = 0
    refused: int = 0
    failed: int = 0
    lost: int = 0
    grant_uses: int = 0
    """Sessions that were exempt by a grant."""
    segments: int = 0
    blobs_checked: int = 0
    blobs_elsewhere: int = 0
    """Not here, and a receipt says that a collector has them."""
    blobs_absent: int = 0
    """Not here, and not asked for."""

    @property
    def ok(self) -> bool:
        """Say whether it was looked at and there are no faults."""
        return self.checked and not self.faults

    def of_session(self, session: str) -> List[AuditFault]:
        """List the faults of one session, and those of the ledger as a whole."""
        return [one for one in self.faults if one.session in (None, session)]

    def to_json(self) -> Json:
        """Give plain values."""
        found: Json = {"origin": self.origin, "ok": self.ok}
        for name, value in vars(self).items():
            if name in ("faults", "warnings", "findings"):
                found[name] = [one.to_json() for one in value]
            elif name != "origin":
                found[name] = value
        return found

    def lines(self) -> List[str]:
        """Write the report for people."""
        found = [f"ledger {self.origin}"]
        if not self.checked:
            return [*found, "  not checked: there is no key of its host"]
        entries = _entries(self.entries)
        if self.signed_size is not None:
            found.append(f"  {entries}, {self.signed_size} signed for")
        else:
            found.append(f"  {entries}, none signed for")
        if self.receipted_size:
            receipted = _entries(self.receipted_size)
            found.append(f"  {receipted} receipted by a collector")
        counts = [f"{getattr(self, name)} {name}" for name in OUTCOMES if getattr(self, name)]
        if self.live:
            counts.append(f"{self.live} live")
        found.append(
            f"  {amounts.number(self.logins, 'login')}, {amounts.number(self.sessions, 'session')}"
            + (f": {', '.join(counts)}" if counts else "")
        )
        if self.grant_uses:
            found.append(f"  {amounts.number(self.grant_uses, 'use')} of grants checked")
        if self.segments:
            found.append(
                f"  {amounts.number(self.segments, 'segment')}: {self.blobs_checked} checked, "
                f"{self.blobs_elsewhere} receipted and elsewhere, {self.blobs_absent} not here"
            )
        found.extend(f"  finding: {one}" for one in self.findings)
        found.extend(f"  warning: {one}" for one in self.warnings)
        found.extend(f"  fault: {one}" for one in self.faults)
        found.append("  verified" if self.ok else "  " + count_faults(len(self.faults)))
        return found


def blob_receipt_text(origin: str, blob: str) -> bytes:
    """Write what a collector signs for a blob that it stored."""
    return f"recuse/receipt/v1\n{origin}\nsha-256 {blob}\n".encode()


def split_epoch(origin: str) -> Tuple[str, int]:
    """Split an origin into the host's name and the epoch; 0 if it names none."""
    prefix, slash, epoch = origin.rpartition("/")
    if slash and epoch.isascii() and epoch.isdigit() and len(epoch) <= 9:
        return prefix, int(epoch)
    return origin, 0


def verify(
    source: Source, trusted: Trusted, *, blobs: str = "require", now_ns: Optional[int] = None
) -> Report:
    """Verify one ledger that stands alone.

    `blobs` says what an absent blob is: "require", a fault unless a collector's receipt covers it
    and central storage is not here; "present", fine; "skip" looks at none. With `now_ns`, a ledger
    that is overdue now is warned of.
    """
    return verify_all([source], trusted, blobs=blobs, now_ns=now_ns)[0]


def verify_all(
    sources: Sequence[Source],
    trusted: Union[Trusted, Dict[str, Trusted]],
    *,
    blobs: str = "require",
    now_ns: Optional[int] = None,
) -> List[Report]:
    """Verify ledgers; the epochs of one host in order, as sessions may end in a later one.

    `trusted` is one for all, or by host as group_by_host() names it; ledgers of other hosts are
    reported as not checked. min_size is that of the newest epoch.
    """
    if blobs not in BLOB_MODES:
        raise ValueError(f"{blobs!r} is no way to treat blobs")
    reports: List[Report] = []
    by_host = {} if isinstance(trusted, Trusted) else trusted
    for prefix, epochs in group_by_host(
        sources, {name: one.host for name, one in by_host.items()}
    ).items():
        known = trusted if isinstance(trusted, Trusted) else trusted.get(prefix)
        if known is None:
            reports += [Report(one.origin, checked=False) for one in epochs]
            continue
        earlier: Optional[_Audit] = None
        for source, later in zip(epochs, [*epochs[1:], None]):
            renamed = split_epoch(source.origin)[0] != prefix
            audit = _Audit(source, known, blobs, earlier, later, renamed)
            audit.run(now_ns if later is None else None)
            reports.append(audit.report)
            earlier = audit
    here = {split_epoch(one.origin)[0] for one in sources}
    for prefix in sorted(set(by_host) - here):
        gone = AuditFault("missing", f"ledger of {prefix}", "missing: there is none of that host")
        reports.append(Report(prefix, faults=[gone]))
    return reports


def group_by_host(
    sources: Sequence[Source], keys: Optional[Mapping[str, Verifier]] = None
) -> Dict[str, List[Source]]:
    """Group ledgers by host, in the order of their epochs.

    A host is named by the origin of its newest ledger, without the epoch. Ledgers that it kept
    under another name are its own too: the first entry of the one after names them, and no other
    key in `keys`, by name of host, is known to be theirs.
    """
    hosts: Dict[str, List[Source]] = {}
    for source in sources:
        hosts.setdefault(split_epoch(source.origin)[0], []).append(source)
    for source in sources:
        mine, before = split_epoch(source.origin)[0], _origin_before(source)
        theirs = split_epoch(before)[0] if before else mine
        named = any(one.origin == before for one in hosts.get(theirs, ()))
        known = {key.public for name, key in (keys or {}).items() if name in (mine, theirs)}
        if theirs != mine and named and len(known) < 2 and mine in hosts:
            hosts[mine] += hosts.pop(theirs)
    for epochs in hosts.values():
        epochs.sort(key=lambda one: split_epoch(one.origin)[1])
    return hosts


def _origin_before(source: Source) -> Optional[str]:
    """Read the name of the ledger before."""
    origin = _before(source).get("origin")
    return origin if isinstance(origin, str) else None


def _before(source: Source) -> Json:
    """Read what the first entry says of the ledger before; {} if it says nothing."""
    try:
        _, raw, _ = next(source.entries())
        return parse(raw or b"").object("previous")
    except (StopIteration, RecuseError):
        return {}


def named_verifier(key: Verifier, origin: str) -> Verifier:
    """Let a host's key check an origin of that host, whichever epoch.

    Raises: CryptoError if the key belongs to another host.
    """
    if key.name != origin and split_epoch(key.name)[0] != split_epoch(origin)[0]:
        raise CryptoError(f"the trusted key is of {key.name}, not of {origin}")
    return Verifier.make(origin, TYPE_LOG, key.public)


# Sessions


@dataclass
class _Recording:
    """What the segments of a session add up to so far; digest None once it cannot be known."""

    next: int = 0
    size: int = 0
    has_gaps: bool = False  # by an entry or by the content
    gaps: List[Gap] = field(default_factory=list)
    knows_gaps: bool = True  # all of them, by the content or by entries that list them all
    exit_status: Optional[int] = None
    unfiltered: bool = False
    pauses: int = 0
    resumed: bool = False  # it was exempt, and is recorded since that ended
    digest: Optional[Any] = field(default_factory=hashlib.sha256)


_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)
# Lines of a recording that hold what was shown or typed.
_CONTENT = re.compile(rb'^\[[^,"\n]*,\s*"[oeib]"', re.MULTILINE)
_GAP = re.compile(rb'^\[[^,"\n]*,\s*"g"', re.MULTILINE)


def _gaps_of(entry: Entry) -> Optional[List[Gap]]:
    """Read the gaps that an entry lists; None if they are none."""
    found: List[Gap] = []
    listed = entry.ours.get("gaps")
    for one in listed if isinstance(listed, list) else () if listed is None else (None,):
        if not isinstance(one, dict):
            return None
        told: Json = {key: one.get(key) for key in Gap.__dataclass_fields__}
        gap = Gap(**told)
        sizes = (gap.bytes,) if gap.lines is None else (gap.bytes, gap.lines)
        if not all(isinstance(text, str) for text in (gap.cause, gap.stream, gap.sha256)):
            return None
        if any(type(size) is not int for size in sizes):
            return None
        if gap.cause not in GAP_CAUSES or gap.stream not in STREAM_CODES:
            return None
        found.append(gap)
    return found


def _is_listed(entry: Entry, stated: Sequence[Gap], found: Sequence[Gap]) -> bool:
    """Say whether an entry lists exactly those gaps, or as many of them as it had room for."""
    if entry.ours.get("cut") is True and LEAST_ITEMS <= len(stated) < len(found):
        found = found[: len(stated)]
    return list(stated) == list(found)


def _is_implied(gap: Gap) -> bool:
    """Say whether it is one that no recording can speak of itself: nothing of it was counted."""
    return (gap.stream, gap.bytes, gap.sha256, gap.lines) == ("o", 0, "", None)


def _say(count: Optional[int], one: str) -> str:
    """Word how many an entry says that there are."""
    return f"no number of {one}s" if count is None else amounts.number(count, one)


def _entries(count: int) -> str:
    return amounts.number(count, "entry", "entries")


def _time(entry: Entry, key: str) -> Optional[int]:
    try:
        return parse_time(entry.get(key) or "")
    except LedgerError:
        return None


def _run_name(first: int, last: int) -> str:
    return f"entry {first}" if first == last else f"entries {first}..{last}"


def _label(entry: Entry) -> str:
    about = entry.get("session") or entry.get("login")
    return f"entry {entry.index} ({entry.kind}{f' of {about}' if about else ''})"


@dataclass
class _Policies:
    """The policies that entries of a host name, and decisions by others."""

    named: Set[str] = field(default_factory=set)
    unnamed: List[Tuple[str, Report, AuditFault, bool]] = field(default_factory=list)
    """Digest, whose report it is for, what is wrong, whether an entry that is lost may name it."""
    are_lost: bool = False
    """Entries of a ledger before are: it is not here, or was set back."""


class _Audit:
    """One ledger being verified."""

    def __init__(
        self,
        source: Source,
        trusted: Trusted,
        blobs: str,
        earlier: Optional[_Audit],
        later: Optional[Source],
        renamed: bool,
    ) -> None:
        self.report = Report(source.origin)
        self.heads: List[Head] = []
        self.view: View = earlier.view if earlier else View()
        self.grants: GrantAudit = (
            earlier.grants
            if earlier
            else GrantAudit(trusted.approvers, trusted.revoked, trusted.approval_policies)
        )
        self._told: Consistency = earlier._told if earlier else Consistency()
        self._policies: _Policies = earlier._policies if earlier else _Policies()
        self._source = source
        self._trusted = trusted
        self._blobs = blobs
        self._earlier = earlier
        self._later = later
        self._renamed = renamed
        self._recordings: Dict[str, _Recording] = earlier._recordings if earlier else {}
        self._previous: Optional[Entry] = None
        self._period_ns: Optional[float] = None
        self._contradictions: List[AuditFault] = []
        """Faults that go away if a later epoch says that this one was set back."""
        self._set_back = False
        """This epoch began because the one before was set back."""
        self._began: Optional[str] = None
        """When this epoch did, if it follows another."""
        self._taken_over: Set[str] = set()
        """Logins that began before this epoch: their sessions may have been entered elsewhere."""
        if earlier is None:
            return
        # Numbers of another ledger: of what began there, only that it did matters here.
        self.view.starts.clear()
        rows: List[Row] = [*self.view.sessions.values(), *self.view.logins.values()]
        for row in rows:
            row.seq = -1

    # Results

    def fault(
        self,
        code: str,
        what: str,
        message: str,
        index: Optional[int] = None,
        session: Optional[str] = None,
    ) -> None:
        self.report.faults.append(AuditFault(code, what, message, index, session))

    def warn(
        self,
        code: str,
        what: str,
        message: str,
        index: Optional[int] = None,
        session: Optional[str] = None,
    ) -> None:
        self.report.warnings.append(AuditFault(code, what, message, index, session))

    def _entry_fault(self, code: str, entry: Entry, message: str) -> None:
        self.fault(code, _label(entry), message, entry.index, entry.get("session"))

    # The whole

    def run(self, now_ns: Optional[int]) -> None:
        """Verify everything and fill the report."""
        self._read_heads()
        tree = Tree(self.heads)
        logins, sessions = set(self.view.logins), set(self.view.sessions)
        ended = {row.session for row in self.view.rows() if not row.live}
        try:
            self._read_entries(tree)
        except RecuseError as error:
            self.fault("unreadable", f"ledger {self.report.origin}", error.message)
        self._judge_tree(tree)
        self._judge_tiles(tree)
        self._judge_silence(now_ns)
        if self._later is None:
            self._judge_ends()
            self._judge_policies()
            self._judge_grants(now_ns)
        self._count(logins, sessions, ended)

    def _count(self, logins: Set[str], sessions: Set[str], ended: Set[str]) -> None:
        """Count what began and what ended here; the arguments say what had before."""
        report, view = self.report, self.view
        report.logins = len(set(view.logins) - logins)
        report.sessions = len(set(view.sessions) - sessions)
        for row in view.rows():
            if row.outcome is None:
                report.live += 1
            elif row.session not in ended:
                setattr(report, row.outcome, getattr(report, row.outcome) + 1)

    # Checkpoints and receipts

    def _read_heads(self) -> None:
        origin = self.report.origin
        receipts: List[bytes] = []
        # Before the checkpoint: a host at work may get a receipt for a later one meanwhile.
        try:
            receipts.extend(self._source.receipts())
        except RecuseError as error:
            self.fault("unreadable", "receipts", error.message)
        try:
            note = self._source.checkpoint()
        except RecuseError as error:
            self.fault("unreadable", "checkpoint", error.message)
            note = None
        else:
            if note is None:
                self.fault("no-checkpoint", "checkpoint", "there is none: nothing is signed for")
        signed: Optional[Checkpoint] = None
        if note is not None:
            signed = self._open(note)
        size = signed.size if signed else 0
        if signed and self._later is None and size < self._trusted.min_size:
            self.fault(
                "rollback",
                "checkpoint",
                f"is for {_entries(size)}, but the ledger had {self._trusted.min_size} before",
            )
        for receipt in receipts:
            self._read_receipt(receipt, origin, size)
        if self._later is not None:
            self._read_later(self._later, size)

    def _open(self, note: bytes) -> Optional[Checkpoint]:
        found: Optional[Checkpoint] = None
        sound = False
        try:
            host = self._trusted.host
            if self._renamed:
                host = Verifier.make(self.report.origin, TYPE_LOG, host.public)
            verifier = named_verifier(host, self.report.origin)
            found = open_checkpoint(note, verifier)
            sound = True
        except CryptoError as error:
            self.fault("bad-signature", "checkpoint", error.message)
            try:
                # Not believed, but whether the entries agree with it still tells something.
                found = Checkpoint.parse(Note.parse(note).text)
            except CryptoError:
                return None
        if sound:
            self.report.signed_size = found.size
            self.report.root = found.root.hex()
        self.heads.append(Head("checkpoint", found, sound))
        return found

    def _read_receipt(self, receipt: bytes, origin: str, size: int) -> None:
        keys = [key.of_type(TYPE_COSIGNER) for key in self._trusted.collectors]
        if not keys:
            return
        try:
            opened = open_note(receipt, keys)
            found = Checkpoint.parse(opened.text)
        except CryptoError as error:
            self.fault("bad-receipt", "receipt", error.message)
            return
        by = ", ".join(one.name for one in opened.by)
        what = f"receipt of {by} for {_entries(found.size)}"
        if found.origin != origin:
            if split_epoch(found.origin)[1] <= split_epoch(origin)[1]:
                self.fault("bad-receipt", what, f"is for {found.origin}")
            elif self._later is None:
                message = f"{found.origin} came after this one, and is not here: see the {what}"
                self.fault("rollback", f"ledger {origin}", message)
            return
        if found.size > size:
            self.fault("rollback", "checkpoint", f"is for {_entries(size)}, older than the {what}")
            self._contradictions.append(self.report.faults[-1])
        self.report.receipted_size = max(self.report.receipted_size, found.size)
        self.heads.append(Head(what, found, True))

    def _read_later(self, later: Source, size: int) -> None:
        """Take what the first entry of the next epoch says of this ledger for a head of it.

        Not if this one was set back (what it says then is what was attested, see explain()) or
        lacks what that speaks of, which is seen when that entry is read.
        """
        told = _before(later)
        told_size, told_root = told.get("size"), told.get("root")
        if told.get("origin") != self.report.origin or isinstance(told.get("given_up"), dict):
            return
        if type(told_size) is not int or not 0 <= told_size <= size:
            return
        if not isinstance(told_root, str) or not _HASH.fullmatch(told_root):
            return
        found = Checkpoint(self.report.origin, told_size, bytes.fromhex(told_root))
        self.heads.append(Head(f"first entry of {later.origin}", found, True))

    # Entries

    def _read_entries(self, tree: Tree) -> None:
        chunk: List[Item] = []
        number = 0
        for item in self._source.entries():
            if item[0] // TILE_WIDTH != number:
                self._read_chunk(tree, chunk)
                chunk, number = [], item[0] // TILE_WIDTH
            chunk.append(item)
        self._read_chunk(tree, chunk)

    def _read_chunk(self, tree: Tree, chunk: Sequence[Item]) -> None:
        found: List[Entry] = []
        places: List[Tuple[int, Optional[bytes], Optional[bytes], Optional[Entry]]] = []
        moved: Dict[int, bytes] = {}
        for place, raw, stored in chunk:
            if place > tree.places + len(places) + MAX_HOLE:
                self.fault("misplaced", f"entry at place {place}", "far beyond all others", place)
                continue
            leaf = None if raw is None else leaf_hash(raw)
            entry = None if raw is None else self._parse(tree, place, raw, stored in (None, leaf))
            places.append((place, leaf, stored, entry))
            if entry is None:
                if leaf is not None and stored not in (None, leaf):
                    tree.altered[place] = f"entry {place}"
                continue
            found.append(entry)
            if entry.index != place:
                tree.displaced.append((place, entry.index))
                moved.setdefault(entry.index, leaf or b"")
            elif stored not in (None, leaf):
                tree.altered[place] = _label(entry)
        for place, leaf, stored, entry in places:
            at_home = entry is None or entry.index == place
            # A hash that was moved along with its entry says nothing about this place.
            if not at_home and stored == leaf:
                stored = None
            hint = stored or moved.get(place) or (leaf if at_home else None)
            tree.push(place, leaf, hint, moved)
        # By the numbers that entries give themselves, so that two swapped ones are two faults and
        # not also those of everything between them.
        for entry in sorted(found, key=lambda one: one.index):
            # What was altered is named; that others say what it said is no fault of theirs.
            if entry.index not in tree.altered:
                self._compare(entry)
            self._read_entry(entry)
            self.view.apply(entry)
            self._previous = entry

    def _parse(self, tree: Tree, place: int, raw: bytes, unaltered: bool) -> Optional[Entry]:
        self.report.entries += 1
        try:
            entry = parse(raw)
        except LedgerError as error:
            tree.strange += 1
            if unaltered:
                self.fault("not-an-entry", f"entry {place}", error.message, place)
            return None
        if entry.origin != self.report.origin:
            tree.strange += 1
            self._entry_fault("foreign", entry, f"belongs to {entry.origin!r:.120}")
        return entry

    def _judge_tree(self, tree: Tree) -> None:
        signed = next((one for one in self.heads if one.what == "checkpoint"), None)
        size = signed.checkpoint.size if signed else 0
        sound = max((h.checkpoint.size for h in self.heads if h.entries_hold), default=0)
        for place, number in [one for one in tree.displaced if one[0] < sound]:
            self.fault("misnumbered", f"entry {place}", f"says that it is entry {number}", place)
        tree.displaced = [one for one in tree.displaced if one[0] >= sound]
        missing = tree.missing(size)
        for first, last in missing:
            if last == size - 1 and first >= tree.total:
                self.fault(
                    "tail-cut",
                    _run_name(first, last),
                    f"missing: the checkpoint says {_entries(size)}, the ledger ends "
                    f"before {first}",
                    first,
                )
            else:
                self.fault("missing", _run_name(first, last), "missing", first)
        for a, b in tree.swapped():
            self.fault("swapped", f"entries {a} and {b}", "stand in each other's place", a)
        repeated = dict.fromkeys(tree.repeated())
        for place, number in repeated:
            self.fault("repeated", f"entry {number}", f"stands again at place {place}", number)
        for place, number in tree.misplaced():
            if (place, number) not in repeated:
                self.fault("misplaced", f"entry {number}", f"stands at place {place}", number)
        self._judge_roots(tree, bool(missing))
        covered = max((one.checkpoint.size for one in self.heads if one.signed), default=0)
        if signed and signed.signed and tree.total > size:
            first, last = size, tree.total - 1
            self.warn(
                "unsigned-tail",
                _run_name(first, last),
                "not under the checkpoint"
                + (", but under a receipt" if covered > size else " yet: nothing vouches for it"),
                first,
            )

    def _judge_roots(self, tree: Tree, missing: bool) -> None:
        """Say of each altered entry whether it or its stored hash is wrong, and of each head."""
        signed = [one for one in self.heads if one.signed]
        sound_entries = max((h.checkpoint.size for h in signed if h.entries_hold), default=0)
        sound_hashes = max((h.checkpoint.size for h in signed if h.hashes_hold), default=0)
        for place, label in tree.altered.items():
            if place < sound_entries:
                self.fault("leaf-altered", f"leaf hash of {label}", "altered", place)
            elif place < sound_hashes:
                self.fault("altered", label, "altered: it is not what was signed", place)
            else:
                message = "altered: it does not match its stored leaf hash"
                self.fault("altered", label, message, place)
        # What is missing below this was named already.
        named = max((h.checkpoint.size for h in self.heads if h.what == "checkpoint"), default=0)
        for head in self.heads:
            size = head.checkpoint.size
            if head.entries_hold or head.hashes_hold:
                continue
            if head.computed is None and head.stored is None:
                if size > tree.places:
                    if size <= named:
                        continue
                    what = _run_name(max(named, tree.places), size - 1)
                    self.fault("missing", what, f"missing, but the {head.what} covers them")
                    if head.what != "checkpoint":
                        self._contradictions.append(self.report.faults[-1])
                elif any(one.code in ("missing", "tail-cut") for one in self.report.faults):
                    self.warn("root-unchecked", head.what, "entries that it covers are missing")
                else:
                    self.fault("root-mismatch", head.what, "its root cannot be computed again")
                continue
            if head.what == "checkpoint" or tree.altered or tree.displaced:
                message = f"its root is not that of the first {_entries(size)}: "
                message += (
                    "the ones named here do not account for all that was altered"
                    if tree.altered or tree.displaced or missing
                    else "one or more of them were altered, which cannot be told"
                )
                self.fault("root-mismatch", head.what, message)
            else:
                self.fault("fork", head.what, "vouches for another history than this ledger")
                self._contradictions.append(self.report.faults[-1])

    def _judge_tiles(self, tree: Tree) -> None:
        tiles: List[Tuple[str, int, int, bytes]] = []
        try:
            tiles.extend(self._source.tiles())
        except RecuseError as error:
            self.fault("unreadable", f"tiles of {self.report.origin}", error.message)
        for name, level, number, data in tiles:
            hashes = [data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)]
            if len(data) % HASH_BYTES:
                self.fault("tile-altered", name, f"has {len(data)} bytes")
                hashes.pop()
            span = TILE_WIDTH ** (level - 1)
            for i, one in enumerate(hashes):
                first = (number * TILE_WIDTH + i) * span
                below = tree.tile_roots[first : first + span]
                if len(below) < span:
                    break
                expected = []
                for roots in zip(*below):
                    if None not in roots:
                        expected.append(tree_root(cast(Sequence[bytes], roots)))
                if expected and one not in expected:
                    self.fault("tile-altered", name, f"hash {i} is not that of what it covers")

    # Time

    def _judge_silence(self, now_ns: Optional[int]) -> None:
        last = self._previous
        if now_ns is None or last is None or last.kind == "stop" or self._period_ns is None:
            return
        if now_ns - last.time_ns > OVERDUE_PERIODS * self._period_ns:
            seconds = (now_ns - last.time_ns) // 1_000_000_000
            self.warn(
                "silent-host",
                f"ledger {self.report.origin}",
                f"nothing for {seconds} s since {_label(last)}: the heartbeat is overdue",
                last.index,
            )

    def _read_time(self, entry: Entry) -> None:
        before = self._previous
        if before is not None:
            passed = entry.time_ns - before.time_ns
            if passed < -MAX_CLOCK_STEP_NS:
                self.warn(
                    "clock-step",
                    _label(entry),
                    f"its time, {format_time(entry.time_ns)}, is before that of the one before",
                    entry.index,
                )
            if entry.kind == "start" and before.kind != "stop":
                self.warn(
                    "unclean-start",
                    _label(entry),
                    f"the agent had not stopped: nothing says what was in the "
                    f"{max(0, passed) // 1_000_000_000} s since {_label(before)}",
                    entry.index,
                )
            overdue = self._period_ns is not None and passed > OVERDUE_PERIODS * self._period_ns
            if overdue and before.kind != "stop" and entry.kind != "start":
                self.warn(
                    "silent-period",
                    f"entries {before.index} and {entry.index}",
                    f"{passed // 1_000_000_000} s between them: heartbeats were due",
                    entry.index,
                )
        if entry.kind == "start":
            seconds = entry.number("heartbeat_seconds")
            self._period_ns = seconds * 1e9 if seconds else None
            if seconds is None or not 0 < seconds <= MAX_HEARTBEAT_SECONDS:
                told = "promises no entry within a day: that nothing was entered shows nothing"
                self.warn("no-heartbeat", _label(entry), told, entry.index)

    # Accounting

    def _read_entry(self, entry: Entry) -> None:
        self._read_time(entry)
        for fault in self.grants.read(entry):
            self._entry_fault(fault.code, entry, fault.message)
        self._read_policy(entry)
        if entry.kind == "start" and entry.index == 0:
            self._read_first(entry)
        elif entry.kind == "login":
            login = self.view.logins.get(entry.get("login") or "")
            if login is not None and self._is_taken_over(login):
                # What it had before stays with it, and counts.
                login.seq = entry.index
                self._taken_over.add(login.login)
            elif login is not None:
                self._entry_fault("repeated", entry, "there was a login of that id before")
            if self._began is not None and (entry.get("started") or "") < self._began:
                self._taken_over.add(entry.get("login") or "")
        elif entry.kind == "logout":
            self._read_logout(entry)
        elif entry.kind == "segment":
            self._read_segment(entry)
        elif entry.kind == "close":
            self._read_close(entry)
        elif entry.kind in pauserecords.KINDS:
            self._read_pause(entry)
        elif entry.kind == "finding":
            self._read_finding(entry)
        elif entry.kind in ("open", "exempt") or (
            entry.kind == "refused" and entry.get("session") is not None
        ):
            self._read_open(entry)

    def _compare(self, entry: Entry) -> None:
        """Hold what an entry repeats of its login and session against what was said before."""
        code = "close-differs" if entry.kind == "close" else "differs"
        for difference in self._told.read(entry):
            self._entry_fault(code, entry, str(difference))
        for difference in (*self._told.read_host(entry), *fact_differences(entry)):
            self._entry_fault("differs", entry, str(difference))
        for difference in event_differences(entry):
            told = f"{difference.now!r:.160}, and by our fields {difference.was!r:.160}"
            what = f"as an OCSF event its {difference.field} is {told}"
            self._entry_fault("event-differs", entry, what)

    def _read_policy(self, entry: Entry) -> None:
        """See that decisions name policies of which entries say that they were in force."""
        digest = entry.get("policy")
        if entry.kind == "policy":
            self._policies.named.add(digest or "")
        elif entry.kind in DECIDED and digest is not None and digest not in self._policies.named:
            # Where there was no room for it, an agent of before entered it later.
            told = f"by policy {digest:.16}, of which no entry says that it was in force"
            found = AuditFault(
                "policy-unknown", _label(entry), told, entry.index, entry.get("session")
            )
            is_older = self._began is not None and (entry.get("started") or "") < self._began
            named_elsewhere = is_older and self._policies.are_lost
            self._policies.unnamed.append((digest, self.report, found, named_elsewhere))

    def _judge_policies(self) -> None:
        """Name decisions by policies that no entry names."""
        for digest, report, found, may_be in self._policies.unnamed:
            if digest not in self._policies.named:
                (report.warnings if may_be else report.faults).append(found)

    def _read_finding(self, entry: Entry) -> None:
        info = entry.data.get("finding_info")
        words = info.get("desc") if isinstance(info, dict) else None
        what = entry.get("what") or "unknown"
        message = words if isinstance(words, str) else what
        self.report.findings.append(AuditFault(what, _label(entry), message, entry.index))

    def _is_taken_over(self, row: Row) -> bool:
        """Say whether it began in an earlier epoch and lives: a new epoch may enter it anew.

        On a host that was set back it may live again.
        """
        return row.seq < 0 and (row.closed_seq is None or self._set_back)

    def _read_first(self, entry: Entry) -> None:
        """Compare what a new epoch says of the one before with the latter, if it is here."""
        previous = entry.ours.get("previous")
        if not isinstance(previous, dict):
            return
        self._began = format_time(entry.time_ns)
        self._set_back = isinstance(previous.get("given_up"), dict)
        earlier = self._earlier
        gone = earlier is None or earlier.report.origin != previous.get("origin")
        self._policies.are_lost |= gone or self._set_back
        if earlier is None or gone:
            self.warn(
                "no-previous",
                _label(entry),
                f"the ledger before it, {previous.get('origin')!s:.200}, is not here",
                entry.index,
            )
            return
        size = previous.get("size")
        there = earlier.report.signed_size
        if self._set_back and earlier.explain(size, previous.get("root")):
            return
        if isinstance(size, int) and there is not None and size > there:
            earlier.fault(
                "rollback",
                "checkpoint",
                f"is for {_entries(there)}, but {self.report.origin} says that it had {size}",
            )

    def explain(self, size: object, root: object) -> bool:
        """Turn what contradicts a receipt into warnings: a later epoch says so of itself.

        Only if that receipt is here, so that central storage is known to have it all. Says whether
        this ledger, or a receipt for it, has that size and root.
        """
        heads = [one for one in self.heads if one.signed]
        if not any((one.checkpoint.size, one.checkpoint.root.hex()) == (size, root)
                   for one in heads):  # fmt: skip
            return False
        explained = set(map(id, self._contradictions))
        self.report.faults = [one for one in self.report.faults if id(one) not in explained]
        for one in self._contradictions:
            told = "; the next epoch says that it was set back: central storage has what it lacks"
            self.warn("set-back", one.object, one.message + told, one.index, one.session)
        self._contradictions.clear()
        return True

    def _read_logout(self, entry: Entry) -> None:
        row = self.view.logins.get(entry.get("login") or "")
        if row is None:
            self._entry_fault("unknown-login", entry, "no entry says that this login began")
            return
        if row.closed_seq is not None:
            self._entry_fault("repeated", entry, "this login had ended before")
        stated = entry.number("sessions")
        entered, elsewhere = len(row.sessions), row.login in self._taken_over
        if elsewhere and (self._set_back or entered < (stated or 0)):
            pass
        elif stated != entered:
            self._entry_fault(
                "session-count", entry, f"says {_say(stated, 'session')}, but {entered} entered"
            )
        outcome = entry.get("outcome")
        if outcome is not None and outcome not in OUTCOMES:
            self._entry_fault("bad-outcome", entry, f"{outcome!r:.40} is no outcome")
        if outcome is None and not row.sessions and not (elsewhere and stated):
            self._entry_fault("unaccounted", entry, "a login without sessions and without outcome")
        if outcome == "partial" and entry.get("gap") is None:
            self._entry_fault("gap-unstated", entry, "partial, but no cause is given")

    def _read_open(self, entry: Entry) -> None:
        name = entry.get("session")
        if name is None:
            self._entry_fault("not-an-entry", entry, "names no session")
            return
        row = self.view.sessions.get(name)
        if row is not None and self._is_taken_over(row):
            del self.view.sessions[name]
            old = self._recordings.pop(name, _Recording())
            self._recordings[name] = _Recording(pauses=old.pauses, resumed=old.resumed)
            login = self.view.logins.get(row.login or "")
            if login is not None and name in login.sessions:
                login.sessions.remove(name)
        elif row is not None:
            self._entry_fault("repeated", entry, "there was a session of that id before")
        late = entry.ours.get("late") is True
        if (entry.get("login") or "") not in self.view.logins and not late:
            self._entry_fault("unknown-login", entry, "no entry says that its login began")
        if entry.kind == "refused" and entry.get("outcome") != "refused":
            told = f"refused, and its outcome is {entry.get('outcome')!r:.40}"
            self._entry_fault("bad-outcome", entry, told)
        if entry.kind == "exempt":
            self._judge_expiry(entry, known=row is not None)
            needed = ("reason", "owner", "expires", "policy")
            without = [key for key in needed if not entry.get(key)]
            if not entry.get("rule") and not entry.get("grant"):
                without.insert(0, "rule")
            if without:
                self._entry_fault(
                    "exempt-ungrounded", entry, f"exempt without {', '.join(without)}"
                )

    def _judge_expiry(self, entry: Entry, known: bool) -> None:
        """See that the rule of an exemption had not expired; of grants, their audit does."""
        started_ns, last_day = _time(entry, "started"), entry.get("expires") or ""
        if started_ns is None:
            self._entry_fault("exempt-ungrounded", entry, "does not say when it began")
            return
        if entry.get("grant") is not None or not _DAY.fullmatch(last_day):
            return
        begins = [started_ns]
        if not (known or "carried" in entry.ours):
            begins.append(entry.time_ns - LONGEST_QUESTION_NS)
        if any(format_time(max(0, one - LATE_NS))[:10] > last_day for one in begins):
            told = f"the last day of its rule was {last_day}"
            self._entry_fault("exempt-ungrounded", entry, told)

    def _read_segment(self, entry: Entry) -> None:
        self.report.segments += 1
        name, n = entry.get("session") or "", entry.number("n")
        blob, plain_size = entry.get("blob"), entry.number("plain_size")
        if n is None or blob is None or plain_size is None:
            self._entry_fault("not-an-entry", entry, "not a segment")
            return
        row = self.view.sessions.get(name)
        if row is None:
            self._entry_fault("unknown-session", entry, "no entry says that this session began")
        elif row.closed_seq is not None:
            self._entry_fault("late-segment", entry, "the session had ended before")
        recording = self._recordings.setdefault(name, _Recording())
        withheld = row is not None and row.is_withheld and not recording.resumed
        if withheld and row is not None and not row.is_relayed:
            self._entry_fault("exempt-content", entry, "content of a session that was exempt")
        if n != recording.next:
            recording.digest = None
            recording.knows_gaps = False
            if n > recording.next:
                first, last = recording.next, n - 1
                which = f"segment {first}" if first == last else f"segments {first}..{last}"
                message = f"segment {n} comes where {first} is due: {which} of {name} missing"
            else:
                message = f"segment {n} of {name} comes again or late"
            self._entry_fault("segment-order", entry, message)
        recording.next = max(recording.next, n + 1)
        recording.size += plain_size
        gaps = entry.ours.get("gaps")
        self._judge_causes(entry, recording)
        plain = self._read_blob(entry, f"segment {n} of {name}", blob, plain_size)
        if plain is None:
            recording.digest = None
        elif recording.digest is not None:
            recording.digest.update(plain)
        if plain is not None and not gaps and _GAP.search(plain):
            self._entry_fault("gap-unstated", entry, "its recording has gaps, and it says of none")
        self._add_marks(entry, recording, plain)
        if withheld and plain is not None and _CONTENT.search(plain):
            self._entry_fault("exempt-content", entry, "content of a session that was exempt")

    def _add_marks(self, entry: Entry, recording: _Recording, plain: Optional[bytes]) -> None:
        """Hold what a segment's entry says of its lines against them, if they are here."""
        stated = _gaps_of(entry)
        recording.has_gaps |= bool(entry.ours.get("gaps"))
        if plain is None:
            if stated is None or len(stated) >= MAX_GAPS or entry.ours.get("cut") is True:
                recording.knows_gaps = False
            for gap in stated or ():
                add_gap(recording.gaps, gap)
            return
        marks = read_marks(plain)
        recording.has_gaps |= bool(marks.gaps)
        for gap in marks.gaps:
            add_gap(recording.gaps, gap)
        if marks.exit_status is not None:
            recording.exit_status = marks.exit_status
        recording.unfiltered |= marks.unfiltered is not None
        told = entry.number("events"), entry.number("replaced") or 0
        if told != (marks.events, marks.replaced):
            message = f"says {told[0]} events and {told[1]} replaced, "
            message += f"its lines have {marks.events} and {marks.replaced}"
            self._entry_fault("recording-differs", entry, message)
        times = entry.ours.get("t0"), entry.ours.get("t1")
        if marks.events and times != (marks.t0, marks.t1):
            message = f"says that it goes from {times[0]!r:.40} to {times[1]!r:.40} s, "
            message += f"its lines go from {marks.t0} to {marks.t1}"
            self._entry_fault("recording-differs", entry, message)
        if stated is None or not _is_listed(entry, stated, marks.gaps[:MAX_GAPS]):
            if entry.ours.get("gaps"):
                message = "the gaps that it lists are not those of its lines"
                self._entry_fault("recording-differs", entry, message)

    def _read_pause(self, entry: Entry) -> None:
        name = entry.get("session") or ""
        row = self.view.sessions.get(name)
        if row is None:
            self._entry_fault("unknown-session", entry, "no entry says that this session began")
            return
        if row.closed_seq is not None:
            self._entry_fault("repeated", entry, "the session had ended before")
        recording = self._recordings.setdefault(name, _Recording())
        withdrawn = entry.get("why") == "revoked" and row.verdict == "exempt"
        if entry.kind == "pause":
            if row.paused_seq is not None:
                self._entry_fault("repeated", entry, "the session was paused before")
            recording.pauses += 1
            self._judge_pause(entry, row)
        elif withdrawn:
            recording.resumed = True
        elif row.paused_seq is None:
            self._entry_fault("repeated", entry, "the session was not paused")

    def _judge_pause(self, entry: Entry, row: SessionRow) -> None:
        """See that a rule allowed a pause, for as long; what a grant allowed, its audit sees."""
        if isinstance(entry.ours.get("grant_use"), dict) or "continued" in row.notes:
            return
        until_ns, seconds = _time(entry, "until"), self._told.longest_pause(row.session)
        if seconds is None:
            self._entry_fault("gap-ungrounded", entry, "neither a rule nor a grant allows a pause")
        elif until_ns is None or until_ns - entry.time_ns > seconds * 10**9 + MAX_CLOCK_STEP_NS:
            told = f"paused for longer than the {seconds} s that its rule allows"
            self._entry_fault("gap-ungrounded", entry, told)

    def _judge_causes(self, entry: Entry, recording: _Recording) -> None:
        """See that what was withheld was withheld by an entry."""
        gaps = entry.ours.get("gaps")
        listed = gaps if isinstance(gaps, list) else []
        causes = [gap.get("cause") for gap in listed if isinstance(gap, dict)]
        row = self.view.sessions.get(entry.get("session") or "")
        if "pause" in causes and not recording.pauses:
            self._entry_fault("gap-ungrounded", entry, "a pause that no entry speaks of")
        if "exempt" in causes and row is not None and row.verdict != "exempt":
            self._entry_fault("gap-ungrounded", entry, "withheld, but the session was not exempt")

    def _read_blob(self, entry: Entry, what: str, blob: str, plain_size: int) -> Optional[bytes]:
        if self._blobs == "skip":
            return None
        name = entry.get("session")
        try:
            data = self._source.blob(blob)
        except RecuseError as error:
            self.fault("unreadable", what, f"blob {blob}: {error.message}", entry.index, name)
            return None
        if data is None:
            receipted = self._is_receipted(entry.index, blob)
            if receipted and not self._source.is_central:
                self.report.blobs_elsewhere += 1
            elif self._blobs == "require":
                message = f"blob {blob} is missing" + ", though it was receipted" * receipted
                self.fault("blob-missing", what, message, entry.index, name)
                self._contradictions.append(self.report.faults[-1])
            else:
                self.report.blobs_absent += 1
            return None
        self.report.blobs_checked += 1
        if hashlib.sha256(data).hexdigest() != blob:
            self.fault("blob-altered", what, f"blob {blob} has been altered", entry.index, name)
            return None
        size = entry.number("size")
        if size != len(data):
            message = f"blob {blob} has {len(data)} bytes, not {size}"
            self.fault("blob-size", what, message, entry.index, name)
        if not 0 <= plain_size <= MAX_PLAIN_BYTES:
            self.fault("blob-size", what, f"says {plain_size} bytes", entry.index, name)
            return None
        unpack = zlib.decompressobj(16 + zlib.MAX_WBITS)
        try:
            plain = unpack.decompress(data, plain_size + 1)
        except zlib.error:
            plain = b""
        if not unpack.eof or unpack.unused_data or len(plain) != plain_size:
            message = f"blob {blob} does not unpack to {plain_size} bytes"
            self.fault("blob-unreadable", what, message, entry.index, name)
            return None
        return plain

    def _is_receipted(self, index: int, blob: str) -> bool:
        # Hosts send a blob before the entry that names it, so a receipt for the entry covers both.
        if index < self.report.receipted_size:
            return True
        if not self._trusted.collectors:
            return False
        receipt = self._source.blob_receipt(blob)
        if receipt is None:
            return index < self._receipted_by_now()
        keys = [key.of_type(TYPE_LOG) for key in self._trusted.collectors]
        try:
            return open_note(receipt, keys).text == blob_receipt_text(self.report.origin, blob)
        except CryptoError as error:
            self.fault("bad-receipt", f"receipt for blob {blob}", error.message)
            return False

    def _receipted_by_now(self) -> int:
        """Look at the receipts again: a host at work may have got one since."""
        keys = [key.of_type(TYPE_COSIGNER) for key in self._trusted.collectors]
        size = 0
        for receipt in self._source.receipts():
            try:
                found = Checkpoint.parse(open_note(receipt, keys).text)
            except CryptoError:
                continue
            if found.origin == self.report.origin:
                size = max(size, found.size)
        return size

    def _read_close(self, entry: Entry) -> None:
        name = entry.get("session") or ""
        outcome, verdict = entry.get("outcome"), entry.get("verdict")
        if outcome not in OUTCOMES:
            self._entry_fault("bad-outcome", entry, f"{outcome!r:.40} is no outcome")
        self._read_end(entry)
        row = self.view.sessions.get(name)
        recording = self._recordings.pop(name, _Recording())
        if row is None:
            self._entry_fault("unknown-session", entry, "no entry says that this session began")
            return
        if row.closed_seq is not None:
            self._entry_fault("repeated", entry, f"this session had ended before: {row.outcome}")
            return
        if row.paused_seq is not None:
            self._entry_fault("gap-unstated", entry, "paused, and never resumed")
        if row.is_withheld:
            fits = outcome != "recorded" and (outcome != "partial" or recording.resumed)
        else:
            fits = outcome != "exempt"
        if not fits:
            self._entry_fault("close-differs", entry, f"verdict {verdict}, outcome {outcome}")
        self._judge_causes(entry, recording)
        self._judge_recording(entry, row, recording)

    def _read_end(self, entry: Entry) -> None:
        """See when it ended: an exemption that lasted longer could say that it ended earlier."""
        ended_ns = _time(entry, "ended")
        if ended_ns is None:
            self._entry_fault("bad-outcome", entry, "does not say when it ended")
        elif entry.get("outcome") == "exempt" and "carried" not in entry.ours:
            passed = entry.time_ns - ended_ns
            if passed > LATE_NS:
                told = f"entered {passed // 10**9} s after its end: that is just the host's word"
                self.warn("late-entry", _label(entry), told, entry.index, entry.get("session"))

    def _judge_recording(self, entry: Entry, row: SessionRow, recording: _Recording) -> None:
        outcome = entry.get("outcome")
        has_gaps = bool(entry.ours.get("gaps")) or recording.has_gaps
        if outcome == "partial" and not has_gaps:
            self._entry_fault("gap-unstated", entry, "partial, but no gap is given")
        if outcome == "recorded" and has_gaps:
            self._entry_fault("gap-unstated", entry, "recorded, but there are gaps")
        if outcome in ("failed", "lost", "exempt") and entry.get("digest") is None:
            return  # says nothing of a recording: there was none, or it is gone
        if outcome != "recorded":
            self._judge_gaps(entry, recording)
        # A nested one is in the recording around it; a late one may have been cut short at once.
        if outcome == "recorded" and not (recording.next or row.kind == "nested" or row.late):
            self._entry_fault("segment-count", entry, "recorded, and no segment was entered")
        segments, size, digest = (
            entry.number("segments"),
            entry.number("size"),
            entry.get("digest"),
        )
        if segments != recording.next:
            self._entry_fault(
                "segment-count",
                entry,
                f"says {_say(segments, 'segment')}, {recording.next} entered",
            )
        if size != recording.size:
            self._entry_fault(
                "recording-size", entry, f"says {size} bytes, the segments have {recording.size}"
            )
        if recording.digest is None or (digest is None and not recording.next):
            return
        if digest != recording.digest.hexdigest():
            self._entry_fault("digest-mismatch", entry, "its digest is not that of the segments")
            return
        self._judge_flags(entry, recording)
        if entry.number("exit_status") != recording.exit_status:
            told = f"its exit status is {entry.number('exit_status')}, that of the recording "
            self._entry_fault("recording-differs", entry, f"{told}{recording.exit_status}")

    def _judge_flags(self, entry: Entry, recording: _Recording) -> None:
        """See that a close says of its recorder what the recording does.

        One that was interrupted may have broken off within a line, which no segment has.
        """
        flags = entry.ours.get("flags") or []
        if entry.ours.get("cut") is True or not isinstance(flags, list):
            return
        if recording.exit_status is None and "interrupted" not in flags:
            told = "its recording has no end, and it is not flagged as interrupted"
            self._entry_fault("recording-differs", entry, told)
        if recording.unfiltered is not ("unfiltered" in flags):
            who = "its recording says" if recording.unfiltered else "its flags alone say"
            self._entry_fault("recording-differs", entry, f"{who} that it is unfiltered")

    def _judge_gaps(self, entry: Entry, recording: _Recording) -> None:
        """See that a close lists the gaps of its recording, and what that cannot say itself."""
        if not recording.knows_gaps:
            return
        stated, found = _gaps_of(entry), recording.gaps
        if stated is not None:
            implied = stated[len(found) :]
            if _is_listed(entry, stated[: len(found)], found) and all(map(_is_implied, implied)):
                return
        message = "the gaps that it lists are not those of the recording"
        self._entry_fault("recording-differs", entry, message)

    def _judge_grants(self, now_ns: Optional[int]) -> None:
        """Say which exemptions rest on something that could not be checked here, or is owed."""
        self.report.grant_uses = self.grants.checked
        for name in sorted(self.grants.unchecked):
            self.warn(
                "grant-unchecked", f"grant {name}", "its signatures were not checked: no approvers"
            )
        for name, how in sorted(self.grants.unsigned.items()):
            self.warn("grant-unsigned", f"grant {name}", f"{how}: there is just the host's word")
        for about, doubt in self.grants.doubts(now_ns):
            self.warn(doubt.code, about, doubt.message)

    def _judge_ends(self) -> None:
        for row in self.view.abandoned():
            if isinstance(row, SessionRow):
                what, session = f"session {row.session}", row.session
            else:
                what, session = f"login {row.login}", ""
            if row.outcome is None:
                self.fault(
                    "unclosed",
                    what,
                    "never ended, though the host has booted again since: lost"
                    + (", the host was set back to before that" if self._set_back else ""),
                    row.seq if row.seq >= 0 else None,
                    session or None,
                )
