"""Reads what this host knows of logins: the journal, wtmp, and the ledger of late."""

from __future__ import annotations

import os
import platform
from dataclasses import replace
from datetime import datetime
from typing import Any, Iterable, Iterator, List, Optional, Tuple

from . import records
from .coverage import LOGIND_NEW, WTMP_LAYOUTS, Reader, Trace, journal_trace, wtmp_traces
from .errors import AccessDenied, LedgerError, NotFound
from .ledger import LedgerReader

WTMP = "var/log/wtmp"
MAX_WTMP_BYTES = 16 << 20  # its newest 40,000 logins
MAX_TRACES = 200_000
EARLIER_SECONDS = 300.0
"""Read on top, so that logins are whole which began at the edge of the time asked for."""
_PROGRAMS = ("sshd", "sshd-session", "login", "su", "sudo")
_PASSED_ON = (
    "MESSAGE", "MESSAGE_ID", "USER_ID", "LEADER",
    "_BOOT_ID", "_COMM", "_EXE", "_PID", "_UID", "_AUDIT_SESSION",
)  # fmt: skip


def read_journal(since: datetime) -> Tuple[List[Trace], int]:
    """Give what the journal has of logins since then, and from when on it reaches back.

    The journal is read in the order in which it was written: a clock that was set back hides
    nothing that came after.

    Raises: NotFound without a journal, AccessDenied if it is not for the caller to read.
    """
    try:
        from systemd import journal
    except ImportError:
        raise NotFound("there is no systemd for Python here", "install python3-systemd") from None
    since_ns = int(since.timestamp() * 1e9)
    # With the users' files: what sudo says with the uid of its caller is in theirs.
    with journal.Reader(journal.LOCAL_ONLY) as reader:
        first = _first_ns(reader)
        if first is None:
            raise AccessDenied(
                "the journal has nothing that the caller may read",
                "run it as root, or as a member of systemd-journal",
            )
        for name in _PROGRAMS:
            reader.add_match(_COMM=name)
        reader.add_disjunction()
        reader.add_match(MESSAGE_ID=LOGIND_NEW)
        reader.seek_realtime(since.timestamp() - EARLIER_SECONDS)
        traces: List[Trace] = []
        recent = False
        for fields in _raw(reader):
            time_ns = int(fields["__REALTIME_TIMESTAMP"]) * 1000
            recent = recent or time_ns >= since_ns
            trace = journal_trace(fields, time_ns)
            if trace is not None:
                traces.append(trace if recent else replace(trace, recent=False))
            if len(traces) >= MAX_TRACES:
                raise NotFound(
                    f"the journal has more than {MAX_TRACES} traces of logins since then",
                    "ask for less time with --since",
                )
        return traces, first


def _first_ns(reader: Any) -> Optional[int]:
    reader.seek_head()
    for fields in _raw(reader):
        return int(fields["__REALTIME_TIMESTAMP"]) * 1000
    return None


def _raw(reader: Any) -> Iterator[Any]:
    """Give entries as strings; its own conversion of every field is slow and may fail."""
    while reader._next():
        entry = {}
        for name in _PASSED_ON:
            try:
                entry[name] = reader._get(name).decode("utf-8", "backslashreplace")
            except KeyError:
                continue
        entry["__REALTIME_TIMESTAMP"] = reader._get_realtime()
        yield entry


def wtmp_layout(machine: str) -> str:
    """Say how wtmp is laid out on a kind of machine, see utmp(5)."""
    return "wide" if machine in ("aarch64", "riscv64", "loongarch64") else "narrow"


def read_wtmp(root: str, since: datetime) -> List[Trace]:
    """Give the logins of wtmp since then; none if there is no such file."""
    layout = wtmp_layout(platform.machine())
    try:
        with open(os.path.join(root, WTMP), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            record = WTMP_LAYOUTS[layout].size
            skipped = max(0, size - MAX_WTMP_BYTES)
            file.seek(skipped - skipped % record)
            data = file.read(MAX_WTMP_BYTES + record)
    except FileNotFoundError:
        return []
    except PermissionError:
        raise AccessDenied(f"/{WTMP} is not for the caller to read", "run it as root") from None
    since_ns = int(since.timestamp() * 1e9)
    return [trace for trace in wtmp_traces(data, layout) if trace.time_ns >= since_ns]


def read_ledgers(directories: Iterable[str], since: datetime) -> Reader:
    """Take the logins since then, and a little before, out of the ledgers of all epochs in order.

    Since when recuse was enabled is read from their beginning, as far as need be.

    Raises: LedgerError
    """
    since_ns = int((since.timestamp() - EARLIER_SECONDS) * 1e9)
    found = Reader()
    ledgers = [LedgerReader(one) for one in directories]
    parts = [_recent(ledger, since_ns) for ledger in ledgers]
    for ledger, part in zip(ledgers, parts):
        before = part[0].index if part else None
        for raw in ledger.entries(0, before):
            if b'"kind":"recovered"' in raw:
                entry = _parse(raw)
                if entry is not None and entry.kind == "recovered":
                    found.take_wiring(entry)
        for entry in part:
            found.apply(entry)
    return found


def _recent(ledger: LedgerReader, since_ns: int) -> List[records.Entry]:
    """Give the entries from the newest bundle on that has none since then."""
    bundles: List[List[records.Entry]] = []
    for raw in ledger.backwards():
        entries = [entry for entry in map(_parse, raw) if entry is not None]
        bundles.append(entries)
        if entries and all(entry.time_ns < since_ns for entry in entries):
            break
    return [entry for bundle in reversed(bundles) for entry in bundle]


def _parse(raw: bytes) -> Optional[records.Entry]:
    try:
        return records.parse(raw)
    except LedgerError:
        return None  # verify names it
