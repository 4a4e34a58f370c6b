"""Takes in what recuse-shell recorded, or let pass, while the agent did not answer.

Part of the agent. A file in orphan/ is a recording (.cast) or the stub of a session that went on
unrecorded (.stub); its first line says what the kernel cannot tell any more. The agent enters it
as late, and follows the session if it still lives. What makes no sense is set aside.

Without the agent nobody makes durable what is recorded. So that is done before it is entered: what
the ledger has is not lost with the power, but for the last second as always.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Tuple

from . import records, strictjson
from .errors import RecuseError, SpoolError
from .host import Peer
from .live import LiveLogin, LiveSession
from .policy import UNKNOWN_SOURCE

if TYPE_CHECKING:
    from .agent import Agent

MAX_HEADER_BYTES = 65536
MAX_TEXT = 4096
RETRY_SECONDS = 5.0
AT_ONCE = 16
"""Orphans that wait for the disk together; after a loss of power as many may be entered again."""


class BadOrphan(Exception):
    """A file that recuse-shell would not have written."""


@dataclass(frozen=True)
class Orphan:
    """The first line of an orphan, checked."""

    name: str
    is_stub: bool
    uid: int
    pid: int
    start_ns: int  # UTC
    user: str
    argv0: str
    command: Optional[str]
    tty: str
    term: str
    lang: str
    tags: Tuple[str, ...]
    rows: int
    cols: int


def parse_orphan(name: str, first: bytes) -> Orphan:
    """Check the first line of an orphan.

    Raises: BadOrphan
    """
    stem, _, suffix = name.rpartition(".")
    if suffix not in ("cast", "stub"):
        raise BadOrphan("neither .cast nor .stub")
    if not first.endswith(b"\n"):
        raise BadOrphan("its first line is not whole")
    try:
        header = strictjson.load_text(first)
        told = header["recuse"]
    except (ValueError, KeyError, TypeError):
        raise BadOrphan("its first line is not the header of a recording") from None
    if not isinstance(header, dict) or not isinstance(told, dict) or header.get("version") != 2:
        raise BadOrphan("its first line is not the header of a recording")
    if told.get("late") is not True:
        raise BadOrphan("it is not marked as late")
    uid, pid = _number(told, "uid", 1 << 32), _number(told, "pid", 1 << 22)
    start_ns = _number(told, "start_ns", 1 << 63)
    if stem != f"{uid}-{pid}-{start_ns}":
        raise BadOrphan("its name and its first line differ")
    return Orphan(
        name=name,
        is_stub=suffix == "stub",
        uid=uid,
        pid=pid,
        start_ns=start_ns,
        user=_text(told, "user"),
        argv0=_text(told, "argv0"),
        command=None if told.get("command") is None else _text(told, "command", MAX_HEADER_BYTES),
        tty=_text(told, "tty"),
        term=_text(told, "term"),
        lang=_text(told, "lang"),
        tags=tuple(tag for tag in _text(told, "tags").split(",") if tag),
        rows=_number(header, "height", 1 << 16),
        cols=_number(header, "width", 1 << 16),
    )


def _number(fields: Dict[str, Any], name: str, limit: int) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < limit:
        raise BadOrphan(f"its {name} is not a number that can be")
    return value


def _text(fields: Dict[str, Any], name: str, limit: int = MAX_TEXT) -> str:
    value = fields.get(name, "")
    if not isinstance(value, str) or len(value) > limit:
        raise BadOrphan(f"its {name} is not a text that can be")
    return value


async def adopt_orphans(agent: Agent) -> int:
    """Enter every orphan there is; say how many.

    What is begun is seen through though the caller is cancelled: an entry may be made by then.
    """
    adopted: int = await asyncio.shield(agent.spawn(_adopt_in_turn(agent)))
    return adopted


async def _adopt_in_turn(agent: Agent) -> int:
    async with agent.adopting:  # none twice: the heartbeat and coverage both ask for it
        try:
            return await _adopt_all(agent)
        except SpoolError as error:  # heartbeats go on, and look again
            agent.journal.write("spool-failed", fault=str(error))
            return 0


async def _adopt_all(agent: Agent) -> int:
    adopted = 0
    known = {live.orphan for live in agent.sessions.values() if live.orphan}
    found = agent.spool.orphans(agent.recuse_uid)
    while some := list(itertools.islice(found, AT_ONCE)):
        try:
            adopted += await _adopt_some(agent, [one for one in some if one[0] not in known])
        finally:
            for _, fd, _, _ in some:
                if fd is not None:
                    os.close(fd)
        if agent.leaving:  # the next start goes on
            break
    return adopted


async def _adopt_some(
    agent: Agent, found: Sequence[Tuple[str, Optional[int], bool, str]]
) -> int:
    """Enter some orphans: what a disk is waited for is done for all of them at once."""
    good: Dict[int, Tuple[Orphan, bool]] = {}
    for name, fd, locked, fault in found:
        try:
            if fd is None:
                raise BadOrphan(fault)
            first = os.pread(fd, MAX_HEADER_BYTES, 0).partition(b"\n")
            good[fd] = parse_orphan(name, first[0] + first[1]), locked
        except BadOrphan as error:
            if not locked:
                set_aside(agent, os.path.join(agent.spool.orphan, name), str(error))
        except OSError as error:
            agent.journal.write("spool-fault", file=f"orphan/{name}", fault=str(error))
    if not good:
        return 0
    loop = asyncio.get_running_loop()
    abandoned = {fd for fd, (orphan, locked) in good.items() if not (locked or orphan.is_stub)}
    faults = await loop.run_in_executor(None, agent.spool.sync_orphans, list(good), abandoned)
    taken: List[LiveSession] = []
    adopted = 0
    for fd, (orphan, locked) in good.items():
        try:
            if fd in faults:
                raise faults[fd]
            live = await _adopt(agent, orphan, locked)
            if live is not None:
                taken.append(live)
            adopted += 1
        except (RecuseError, OSError) as error:
            agent.journal.write("spool-fault", file=f"orphan/{orphan.name}", fault=str(error))
        await asyncio.sleep(0)  # logins come first
    try:
        await loop.run_in_executor(None, agent.spool.sync_names)
    except SpoolError as error:
        agent.journal.write("spool-failed", fault=str(error))
    await asyncio.gather(*(_go_on(agent, live) for live in taken))  # their ends share writes
    return adopted


def set_aside(agent: Agent, path: str, fault: str) -> None:
    """Move a file that makes no sense out of the way of the others."""
    try:
        where = agent.spool.quarantine(path)
    except SpoolError as error:
        where, fault = path, error.message
    agent.journal.write("spool-fault", file=os.path.basename(where), fault=fault)


async def _adopt(agent: Agent, orphan: Orphan, locked: bool) -> Optional[LiveSession]:
    """Enter an orphan and take its file; give the session, if it is to go on now."""
    if _answer_was_lost(agent, orphan, locked):
        return None
    pidfd, start = _living(agent, orphan, locked)
    try:
        live = await _enter(agent, orphan, pidfd, start)
    except BaseException:
        if pidfd >= 0:
            os.close(pidfd)
        raise
    agent.sessions[live.id] = live  # known: it must not be entered again
    try:
        take_file(agent, live)
    except (SpoolError, OSError) as error:
        agent.journal.write("spool-fault", file=f"orphan/{orphan.name}", fault=str(error))
        agent.spawn(_take_later(agent, live))
        return None
    return live


def _answer_was_lost(agent: Agent, orphan: Orphan, locked: bool) -> bool:
    """Give an orphan to the session that was entered for it, if recuse-shell did not hear of that.

    We were late, or were killed between the entry and the answer. A process asks for one session,
    so the one that is entered for it and has an empty recording is this one. One that went on
    unrecorded did as it was to, if it was to be let pass.
    """
    for live in agent.sessions.values():
        if live.pid != orphan.pid:
            continue
        if orphan.is_stub:
            if not _is_let_pass(agent, live):
                continue
            agent.spool.remove_orphan(orphan.name)
        elif live.label != "record" or live.recording is None:
            continue
        else:
            lives = locked and not live.ended
            if not lives and live.session.started_ns > orphan.start_ns:
                continue
            if not agent.spool.replace(live.recording, orphan.name):
                continue
        live.flags.append("unanswered")
        with contextlib.suppress(OSError):  # what was recorded says it as well
            agent.live.save(live)
        _tell_adopted(agent, live)
        return True
    return False


def _is_let_pass(agent: Agent, live: LiveSession) -> bool:
    """Say whether a session's program runs in place of recuse-shell, and still does."""
    if live.label == "record" or live.withheld or live.ended:
        return False
    return not agent.kernel.exited(live.pidfd)


def _tell_adopted(agent: Agent, live: LiveSession) -> None:
    session = live.session
    agent.journal.write(
        "adopted", session=live.id, login=session.login.id, user=session.login.user,
        uid=session.login.uid, seq=live.seq, verdict=live.verdict, tty=session.tty, pid=session.pid,
    )  # fmt: skip


async def _take_later(agent: Agent, live: LiveSession) -> None:
    """Take the file of a session that is entered, however often it takes."""
    assert live.orphan is not None
    while agent.spool.has_orphan(live.orphan):
        await asyncio.sleep(RETRY_SECONDS)
        with contextlib.suppress(SpoolError, OSError):
            take_file(agent, live)
            break
    else:
        live.flags.append("recording-missing")
    await _go_on(agent, live)


async def _go_on(agent: Agent, live: LiveSession) -> None:
    """Follow a session that lives, end one that does not."""
    try:
        if live.pidfd >= 0:
            agent.follow_session(live)
            return
        if live.recording is not None:
            agent.sealer.follow(live.recording)
        await agent.end_session(live)
    except (RecuseError, OSError) as error:
        agent.journal.write("spool-fault", file=f"orphan/{live.orphan}", fault=str(error))


async def _enter(agent: Agent, orphan: Orphan, pidfd: int, start: int) -> LiveSession:
    kernel = agent.kernel
    owner = await _login(agent, orphan, pidfd, start)
    now_ns, mono_ns = kernel.now_ns(), kernel.mono_ns()
    account, groups = await agent.accounts.find(orphan.uid)
    session = records.Session(
        id=records.new_id("s", os.urandom(records.ID_BYTES)),
        login=owner.login,
        kind="shell" if orphan.command is None else "command",
        tty=orphan.tty[5:] if orphan.tty.startswith("/dev/") else None,
        command=orphan.command,
        command_cut=False,
        shell="" if account is None else account.shell,
        pid=orphan.pid,
        started_ns=orphan.start_ns,
        mono_ns=min(mono_ns, max(0, mono_ns - (now_ns - orphan.start_ns))),
        term=orphan.term,
        lang=orphan.lang,
        rows=orphan.rows,
        cols=orphan.cols,
        claimed_tags=orphan.tags,
        late=True,
        notes=("agent-did-not-answer",),
    )
    decision = agent.plain_decision(owner.login, (account, groups))
    live = LiveSession(
        session=session,
        grounds=records.Grounds.of(decision),
        verdict="record",
        label="stub" if orphan.is_stub else "record",
        pid=orphan.pid,
        start=start,
        boot_id=agent.boot_id if pidfd >= 0 else "",
        flags=["late"],
        orphan=orphan.name,
        pidfd=pidfd,
    )
    owner.sessions += 1
    try:
        agent.live.save(live)
        live.seq = await agent.book.enter(records.open_entry, session, decision)
    except BaseException:
        agent.live.remove(live)
        owner.sessions -= 1
        agent.spawn(agent.end_if_idle(owner))
        raise
    _tell_adopted(agent, live)
    return live


def take_file(agent: Agent, live: LiveSession) -> None:
    """Move an orphan's file to where its label says, once the ledger has the session."""
    assert live.orphan is not None
    if live.label == "stub":
        agent.spool.remove_orphan(live.orphan)
    else:
        live.recording = agent.spool.adopt_orphan(live.id, live.orphan)


def _living(agent: Agent, orphan: Orphan, locked: bool) -> Tuple[int, int]:
    """Get hold of the session's process; -1 if it has ended.

    A recorder holds the lock of its file as long as it lives. A stub's process is another program
    by now, but the same process: it cannot have started after the stub was written, by a clock
    that may have been set since.
    """
    if not locked and not orphan.is_stub:
        return -1, 0
    kernel = agent.kernel
    try:
        pidfd = kernel.pidfd_open(orphan.pid)
    except OSError:
        return -1, 0
    try:
        start = kernel.stat(orphan.pid).start
        ruid = kernel.identity(orphan.pid).ruid
        expected = agent.recuse_uid if not orphan.is_stub else orphan.uid
        before = locked or kernel.started_ns(start) <= orphan.start_ns + 1_000_000_000
        if before and ruid == expected and not kernel.exited(pidfd):
            return pidfd, start
    except ProcessLookupError:
        pass
    os.close(pidfd)
    return -1, 0


async def _login(agent: Agent, orphan: Orphan, pidfd: int, start: int) -> LiveLogin:
    """Find the login of an orphan while it lives; else imply one."""
    if pidfd >= 0:
        peer = Peer(orphan.pid, agent.recuse_uid, 0, start)
        place = agent.place(peer)
        return await agent.login_of(peer, orphan.uid, agent.kernel.identity(orphan.pid), place)
    account, groups = await agent.accounts.find(orphan.uid)
    login = records.Login(
        id=records.new_id("l", os.urandom(records.ID_BYTES)),
        user=account.name if account is not None else orphan.user or str(orphan.uid),
        uid=orphan.uid,
        auid=None,
        audit_session=None,
        service="",
        source=records.Source(UNKNOWN_SOURCE),
        tty=None,
        ruser=None,
        pid=orphan.pid,
        started_ns=orphan.start_ns,
    )
    return await agent.imply_login(login, (account, groups), orphan.pid, start)
