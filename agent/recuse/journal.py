"""Journal events: one fixed MESSAGE_ID per kind, the same fields everywhere.

The journal is an index for people and programs on this host; the ledger is the evidence. So
nothing here fails or waits: an event that journald does not take is dropped and counted.
Fields: RECUSE_ and the name in capitals, for example RECUSE_SESSION, RECUSE_VERDICT.
packaging/catalog/recuse.catalog explains each kind to `journalctl -x`.
"""
from __future__ import annotations

import errno
import queue
import socket
import struct
import threading
import time
import traceback
from dataclasses import dataclass
from typing import Callable, Dict, List, Mapping, Optional, Union

from . import amounts
from .unprintable import escaped

ALERT, CRIT, ERR, WARNING, NOTICE, INFO = 1, 2, 3, 4, 5, 6  # syslog(3)
SOCKET = "/run/systemd/journal/socket"
IDENTIFIER = "recuse-agent"
MAX_VALUE = 2048  # characters of one field; a user chooses some of them
MAX_WAITING = 1000  # events journald has not taken yet

Value = Union[str, int, None]
Sink = Callable[[Mapping[str, str]], None]


@dataclass(frozen=True)
class Event:
    """A kind of event; `text` names fields in braces."""

    kind: str
    message_id: str
    priority: int
    text: str


EVENTS: Mapping[str, Event] = {
    event.kind: event
    for event in (
        Event(
            "started",
            "4a078007ac4e45e4a3cadd6b22388d8b",
            INFO,
            "recuse-agent {version} is ready, ledger {origin} at entry {seq}",
        ),
        Event(
            "stopped",
            "52b18a4b4d9a4d9f8601e1aeb597c952",
            INFO,
            "recuse-agent stops, {live:session} going on",
        ),
        Event(
            "reloaded",
            "fea0d09eead24cc7b240f1ab911e4a4a",
            INFO,
            "configuration and policy are loaded again, policy {policy}",
        ),
        Event(
            "config-bad",
            "2ef858c671024c2eaa4f6a093b80a838",
            ERR,
            "bad configuration, proceeding with {proceeding}: {fault}",
        ),
        Event(
            "policy-bad",
            "63ee2676f5744ecdb3247b6be7cb4946",
            ERR,
            "bad policy, proceeding with {proceeding}: {fault}",
        ),
        Event(
            "policy-changed",
            "3d96b7a252d14b84ae7f65f0ad3e6ecc",
            NOTICE,
            "policy {policy} is in force, {rules:rule}",
        ),
        Event(
            "login",
            "d8c42436542a4768bf1ce52f5315d72a",
            INFO,
            "login {login} of {user} by {service} from {source}",
        ),
        Event("logout", "f23a77072e174692be1772df110402fe", INFO, "login {login} of {user} ended"),
        Event(
            "recorded",
            "2b63dc1961934593b7f28008f56d771f",
            INFO,
            "session {session} of {user} is recorded",
        ),
        Event(
            "exempt",
            "a17a38ccabb84248b7f2f47c0b610160",
            NOTICE,
            "session {session} of {user} is exempt from recording by rule {rule}: {reason}",
        ),
        Event(
            "nested",
            "1c7906453c9d4e0ebb98ff98465df88b",
            INFO,
            "session {session} of {user} runs inside recording {outer}",
        ),
        Event(
            "transfer",
            "2230ff46e5054b4a92670772fb3335cc",
            INFO,
            "session {session} of {user} is a file transfer, content is not kept",
        ),
        Event(
            "refused",
            "a47425568e184ebd84088b53d0634904",
            WARNING,
            "{what} of {user} is refused by rule {rule}",
        ),
        Event(
            "unrecorded",
            "b3602edabf024d788eef1e9b6e5941cd",
            ERR,
            "session {session} of {user} is not recorded, proceeding: {fault}",
        ),
        Event(
            "closed",
            "c28e52cb85d34cc6a6f9aa9ad59284c2",
            INFO,
            "session {session} of {user} ended: {outcome}",
        ),
        Event(
            "interrupted",
            "a2a2c0c731ca4b0594a1f397f83d56e0",
            WARNING,
            "session {session} of {user} ended without its recorder's last word: {outcome}",
        ),
        Event(
            "unfiltered",
            "c33f01fd39ce40a28e38a4caf8c7a4a0",
            WARNING,
            "the recorder of session {session} of {user} had no filter of system calls, "
            "proceeding: {fault}",
        ),
        Event(
            "tty-held",
            "85af13ae14704bedaf8b3c02cce50557",
            WARNING,
            "the terminal of session {session} is also open in {processes}, proceeding",
        ),
        Event(
            "tty-not-taken",
            "1b34ffba34544f269bccce7cb8c2295c",
            WARNING,
            "the terminal of session {session} stays with {user}, proceeding: {fault}",
        ),
        Event(
            "outlived",
            "047a2a4387b84500b1135650462ad344",
            NOTICE,
            "{processes} outlive session {session} with a terminal of their own",
        ),
        Event(
            "spool-full",
            "05d4c60546274ebd8bfb895363a72828",
            ALERT,
            "the spool has {free} bytes free, fewer than min_free: {proceeding}",
        ),
        Event(
            "spool-free",
            "d8bfc15d9ee845fe91069a07fe387965",
            NOTICE,
            "the spool has room again, {free} bytes",
        ),
        Event(
            "spool-fault",
            "e6bf7f7c5aa44205b26783d6e86f2bb7",
            ERR,
            "file {file} of the spool is set aside: {fault}",
        ),
        Event(
            "adopted",
            "ab8a70713441475297aae6157a2ffa3d",
            WARNING,
            "session {session} of {user}, begun without the agent, is adopted",
        ),
        Event(
            "spool-failed",
            "b6f79a84b2dd489495a9bd3b2d389c1f",
            ERR,
            "the spool cannot be written: {fault}",
        ),
        Event(
            "file-failed",
            "8bbc0fb4343d484c87a141c1e317b083",
            ERR,
            "{file} cannot be written, proceeding with {proceeding}: {fault}",
        ),
        Event(
            "ledger-failed",
            "a3ba9fc6b19f44f691e99ecef1c5c4c6",
            CRIT,
            "the ledger cannot be written: {fault}",
        ),
        Event(
            "ledger-renewed",
            "d0e0b3f1d14242da81bb1d3bd00741e5",
            CRIT,
            "the ledger was damaged, {origin} begins: {fault}",
        ),
        Event(
            "ledger-set-back",
            "e986ab1cbab2429ba5b5e235d0a66975",
            ERR,
            "{fault}; {origin} begins",
        ),
        Event(
            "ledger-recovered",
            "c9cf431e1b6847afab282e4692d94c48",
            WARNING,
            "the ledger had a torn end, {fault}",
        ),
        Event(
            "peer-refused",
            "2a8114b29a7c4d048d90e6a8cb7cb9dd",
            WARNING,
            "process {pid} of uid {uid} is hung up on: {fault}",
        ),
        Event(
            "receipt-bad",
            "a30f1b95fe134e11b2fedc582cde9e11",
            ERR,
            "receipt {file} does not verify, ignoring: {fault}",
        ),
        Event(
            "lookup-slow",
            "d029ab20c8e34894af8f662070aaf3bb",
            WARNING,
            "looking up a user took {milliseconds} ms, proceeding with a thread for each",
        ),
        Event(
            "ask-failed",
            "2f8114bcb11e4e54a3ff2b8abd1d749b",
            WARNING,
            "ask {ask} about {user} has no answer, proceeding with {proceeding}: {fault}",
        ),
        Event(
            "consult-down",
            "5aa100b82021470caa4e6060489b8673",
            ERR,
            "recuse-consult does not answer, proceeding with what the policy states: {fault}",
        ),
        Event(
            "disabled",
            "beedef1f08094662afbabd1139b02208",
            WARNING,
            "logins do not go through recuse: {after}; before: {before}",
        ),
        Event(
            "enabled",
            "d2acee679bdd427abeb287711dfb50c9",
            NOTICE,
            "logins go through recuse: {after}; before: {before}",
        ),
        Event(
            "finding",
            "398a09b150a38c7ff884ed0f02546497",
            CRIT,
            "coverage: {words}: login of {user} by {service} from {source} at {seen}, "
            "seen by {witnesses}",
        ),
        Event(
            "channel-down",
            "5225d4418a564a089c00c0e2f9f9439a",
            ERR,
            "channel {channel} has delivered nothing for {seconds} s, trying again: {fault}",
        ),
        Event(
            "channel-up",
            "bdb7f07d3a6441a0b70b0de588bb8555",
            NOTICE,
            "channel {channel} delivers again, after {seconds} s",
        ),
        Event(
            "channel-gone",
            "04a69b4e43f54afd8c3d8c5edd5f71c4",
            ERR,
            "channel {channel} is off until it is configured anew: {fault}",
        ),
        Event(
            "undelivered",
            "316d2098fe9f46ddb793232fbdd0ae9d",
            ERR,
            "{count:notice} of channel {channel} given up, {first} to {last}: {fault}",
        ),
        Event(
            "request",
            "48b31b7be27942d29d21cca5c53cf5f6",
            NOTICE,
            "{requester} asks for an exemption of {user}, request {grant}: {reason}, {why}",
        ),
        Event(
            "request-refused",
            "c2380de33daf4fd2b981eb45a841df52",
            NOTICE,
            "{requester} may not ask for that exemption of {user}: {fault}",
        ),
        Event(
            "approval",
            "2e9f1d9380214832839afdd1c4ea8c5e",
            NOTICE,
            "{by} approves request {grant} of {requester} for {user}",
        ),
        Event(
            "approval-refused",
            "0602b1e33fc74926b53ee728f933eac9",
            WARNING,
            "an approval of request {grant}, brought by {by}, does not count: {fault}",
        ),
        Event(
            "review-refused",
            "1b5e110f7ef5432cad7bfe20681e68e1",
            WARNING,
            "a review of what {user} did behind broken glass ({grant}), brought by {by}, does not "
            "count: {fault}",
        ),
        Event(
            "rejection",
            "57c9a424455b47a09002084fd55b6d02",
            NOTICE,
            "{by} rejects request {grant} of {requester} for {user}",
        ),
        Event(
            "grant",
            "422064822b8247d2ab134cd941a31360",
            NOTICE,
            "request {grant} of {requester} is granted until {expires}, "
            "{uses:session} of {user} may be exempt",
        ),
        Event(
            "grant-used",
            "1904e2e0af5b4255a48b2858d19dc2b5",
            NOTICE,
            "session {session} of {user} is use {use} of {uses} of grant {grant}",
        ),
        Event(
            "grant-unused",
            "53df3b3ef400497096b1f481fde07f84",
            WARNING,
            "grant {grant} of {user} is not used: {fault}",
        ),
        Event(
            "revocation",
            "06d29cb3859b4626b88758173046488d",
            NOTICE,
            "{by} revokes grant {grant} of {user}",
        ),
        Event(
            "exemption-ended",
            "025b35051482453894c90d4ce5543a21",
            WARNING,
            "session {session} of {user} is no longer exempt: {fault}",
        ),
        Event(
            "user-limit",
            "11949cf290cc4a8a8e0cc5277b7f9e04",
            WARNING,
            "recordings of {user} are at their limit, {live} bytes in {sessions:session} and "
            "{spent} in a while, proceeding with {proceeding}",
        ),
        Event(
            "paused",
            "5d1b0c3f0f6f4c5f9a0e6f2b7c8d4e11",
            NOTICE,
            "{user} pauses the recording of session {session} until {until}: {reason}",
        ),
        Event(
            "resumed",
            "b7a94e0d9c3e4d5c8f21a6075e4b9d32",
            NOTICE,
            "session {session} of {user} is recorded again: {why}",
        ),
        Event(
            "debt",
            "cbde425f32e84beea560e0cf53005ea5",
            ALERT,
            "{user} has broken the glass, grant {grant}, review due {due}: {why}",
        ),
        Event(
            "debt-overdue",
            "9f99dd00a7d6426c94cb2866643cfd34",
            ALERT,
            "the review of {grant} is overdue since {due}: {user} gets no further exemptions",
        ),
        Event(
            "review",
            "4aefa2d79c424fb0b56e30ab0f593839",
            NOTICE,
            "{by} has reviewed what {user} did under {grant}",
        ),
        Event(
            "key-counter",
            "5d0c1f7e4b9a4c35a6c2f08e9b7d1a64",
            ALERT,
            "{fault}: there may be two of it, it has signed for {grant}",
        ),
        Event(
            "fault",
            "9e192a9ff95f4406ade7f37d29606463",
            ERR,
            "internal fault, proceeding: {fault}",
        ),
    )
}


def clean(value: str) -> str:
    """Escape what could forge a line, steer a terminal or is no text at all."""
    text = escaped(value)
    return text if len(text) <= MAX_VALUE else text[:MAX_VALUE] + "…"


def compose(
    kind: str, fields: Mapping[str, Value], identifier: str = IDENTIFIER
) -> Dict[str, str]:
    """Build the journal fields of one event. Raises: KeyError for a kind that does not exist."""
    event = EVENTS[kind]
    values = {name: clean(str(value)) for name, value in fields.items() if value is not None}
    entry = {
        "MESSAGE": amounts.fill(event.text, values),
        "MESSAGE_ID": event.message_id,
        "PRIORITY": str(event.priority),
        "SYSLOG_IDENTIFIER": identifier,
    }
    for name, value in values.items():
        entry["OBJECT_PID" if name == "pid" else "RECUSE_" + name.upper()] = value
    return entry


_DISK_FAILS = (errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO)


class Journal:
    """Writes events to a sink; by default journald."""

    def __init__(self, sink: Optional[Sink] = None, identifier: str = IDENTIFIER) -> None:
        self._sink = sink if sink is not None else Sender()
        self._identifier = identifier

    def write(self, kind: str, **fields: Value) -> None:
        self._sink(compose(kind, fields, self._identifier))

    def fault(self, error: BaseException, **fields: Value) -> None:
        """Report what should not happen, with its traceback; a disk's failures without."""
        if isinstance(error, OSError) and error.errno in _DISK_FAILS:
            self.write("spool-failed", fault=str(error), **fields)
            return
        where = "".join(traceback.format_exception(type(error), error, error.__traceback__)[-6:])
        told = f"{type(error).__name__}: {error}"
        self.write("fault", fault=told, traceback=where[-MAX_VALUE:], **fields)


def pack(entry: Mapping[str, str]) -> bytes:
    """Write an entry in the native protocol of journald, see systemd.io/JOURNAL_NATIVE_PROTOCOL."""
    parts: List[bytes] = []
    for name, value in entry.items():
        raw = value.encode("utf-8", "backslashreplace")
        if b"\n" in raw:
            parts += name.encode(), b"\n", struct.pack("<Q", len(raw)), raw, b"\n"
        else:
            parts += name.encode(), b"=", raw, b"\n"
    return b"".join(parts)


class Sender:
    """Hands events to journald without ever making the caller wait.

    While journald keeps up that is one system call. As soon as it does not, a thread takes over
    until all that waits is sent, so that events stay in order.
    """

    def __init__(self, path: str = SOCKET) -> None:
        self.dropped = 0
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._waiting: "queue.Queue[Optional[bytes]]" = queue.Queue(MAX_WAITING)
        self._thread: Optional[threading.Thread] = None

    def __call__(self, entry: Mapping[str, str]) -> None:
        packet = pack(entry)
        if not self._waiting.unfinished_tasks:
            try:
                self._socket.sendto(packet, socket.MSG_DONTWAIT, self._path)
                return
            except BlockingIOError:
                pass
            except OSError:
                self.dropped += 1
                return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
            self._thread.start()
        try:
            self._waiting.put_nowait(packet)
        except queue.Full:
            self.dropped += 1

    def close(self, timeout_seconds: float = 3.0) -> None:
        """Give journald a moment to take what is waiting."""
        if self._thread is not None:
            until = time.monotonic() + timeout_seconds
            try:
                self._waiting.put(None, timeout=timeout_seconds)
            except queue.Full:
                return
            self._thread.join(max(0.0, until - time.monotonic()))
            self._thread = None
        self._socket.close()

    def _run(self) -> None:
        while True:
            packet = self._waiting.get()
            if packet is not None:
                try:
                    self._socket.sendto(packet, self._path)
                except OSError:
                    self.dropped += 1
            self._waiting.task_done()
            if packet is None:
                return
