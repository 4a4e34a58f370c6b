"""Asks recuse-consult what rules want to know of a session, all of it at once.

Part of the agent. The loop goes on meanwhile, and whoever logs in waits for their own answers only.
Whatever goes wrong here is an answer that did not come, and the policy states what counts then.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Dict, Mapping, Optional, Sequence, Tuple

from .asks import Answer, Ask, encode_question, read_answer
from .errors import WireError
from .facts import NO_ANSWERS, Facts, facts_to_json
from .host import Kernel
from .journal import Journal

# recuse-shell and pam_recuse wait for 2 s; the entry and the answer have to be made after this.
BUDGET_SECONDS = 1.7
MARGIN_SECONDS = 0.1  # recuse-consult keeps to deadlines itself, and can say more
MAX_LINE_BYTES = 16384


class Down(Exception):
    """recuse-consult does not do its work."""


class Asking:
    """The way to recuse-consult."""

    def __init__(self, path: Path, kernel: Kernel, journal: Journal) -> None:
        self._path = path
        self._kernel = kernel
        self._journal = journal

    async def ask(
        self, asks: Sequence[Ask], facts: Facts, began_ns: int
    ) -> Mapping[str, Answer]:
        """Ask everything, and give an answer or the failure for each by name.

        `began_ns` is when (CLOCK_MONOTONIC) the host module began to wait.
        """
        if not asks:
            return NO_ANSWERS
        told = facts_to_json(facts)
        told["phase"] = "login" if facts.tty is None and facts.command is None else "session"
        found = await asyncio.gather(*(self._ask_one(ask, told, began_ns) for ask in asks))
        answers: Dict[str, Answer] = {}
        for ask, (answer, stderr) in zip(asks, found):
            answers[ask.name] = answer
            if answer.match is None:
                self._journal.write(
                    "ask-failed", ask=ask.name, user=facts.user, uid=facts.uid,
                    service=facts.service, source=facts.source, fault=answer.why,
                    proceeding=ask.says(answer), stderr=stderr,
                )  # fmt: skip
        return answers

    async def _ask_one(
        self, ask: Ask, facts: Mapping[str, object], began_ns: int
    ) -> Tuple[Answer, Optional[str]]:
        left = BUDGET_SECONDS - (self._kernel.mono_ns() - began_ns) / 1e9
        deadline_ms = min(ask.deadline_ms, int((left - MARGIN_SECONDS) * 1000))
        if deadline_ms <= 0:
            return Answer(None, "timeout", why="no time was left to ask"), None
        try:
            line = encode_question(ask, facts, deadline_ms)
        except WireError as error:
            return Answer(None, "failed", why=error.message), None
        try:
            talk = self._talk(line)
            return await asyncio.wait_for(talk, deadline_ms / 1000 + MARGIN_SECONDS)
        except asyncio.TimeoutError:
            return Answer(None, "timeout", why=f"no answer within {deadline_ms} ms"), None
        except Down as error:
            self._journal.write("consult-down", fault=str(error), ask=ask.name)
            return Answer(None, "failed", why="recuse-consult does not answer"), None

    async def _talk(self, line: bytes) -> Tuple[Answer, Optional[str]]:
        try:
            reader, writer = await asyncio.open_unix_connection(
                str(self._path), limit=MAX_LINE_BYTES
            )
        except OSError as error:
            raise Down(f"{self._path}: {error.strerror or error}") from None
        try:
            writer.write(line)
            await writer.drain()
            found = await reader.readline()
            return read_answer(found)
        except (OSError, ValueError) as error:
            raise Down(f"{self._path}: {error}") from None
        except WireError:
            raise Down(f"{self._path}: hung up without an answer") from None
        finally:
            writer.transport.abort()

    async def wake(self) -> None:
        """Have recuse-consult started before the first login waits for it."""
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            opening = asyncio.open_unix_connection(str(self._path))
            _, writer = await asyncio.wait_for(opening, BUDGET_SECONDS)
            writer.close()
            await writer.wait_closed()
