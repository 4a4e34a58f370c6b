"""Ask the agent over its control socket: one line of JSON there, one line back; follow its news."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import struct
from typing import Any, Callable, Mapping

from recuse import errors

CONTROL_SOCKET = "/run/recuse/control.sock"
MAX_ANSWER_BYTES = 64 * 1024 * 1024
TIMEOUT_SECONDS = 5.0

_BY_EXIT_CODE = {
    c.exit_code: c
    for c in (
        errors.ConfigError,
        errors.PolicyError,
        errors.WireError,
        errors.NotFound,
        errors.AccessDenied,
        errors.AgentUnreachable,
        errors.CollectorError,
        errors.LedgerError,
        errors.SpoolError,
        errors.CryptoError,
        errors.GrantError,
        errors.PauseError,
    )
}


def ask(
    request: Mapping[str, Any],
    path: str = CONTROL_SOCKET,
    timeout_seconds: float = TIMEOUT_SECONDS,
    who: str = "agent",
) -> dict[str, Any]:
    """Send one request and return the answer of the agent, or of another service of ours.

    Raises: AgentUnreachable; else the error that it answered with.
    """
    unit = "recuse-agent" if who == "agent" else who
    hint = "see: systemctl status %s; recuse doctor" % unit
    answer = bytearray()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_seconds)
            connection.connect(path)
            connection.sendall(json.dumps(request).encode("utf-8") + b"\n")
            while not answer.endswith(b"\n") and len(answer) < MAX_ANSWER_BYTES:
                block = connection.recv(65536)
                if not block:
                    break
                answer += block
    except socket.timeout:
        raise errors.AgentUnreachable(
            "%s does not answer within %g s on %s" % (who, timeout_seconds, path), hint
        ) from None
    except OSError as e:
        raise errors.AgentUnreachable(
            "%s cannot be asked on %s: %s" % (who, path, (e.strerror or str(e)).lower()), hint
        ) from None
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise errors.AgentUnreachable("%s's answer on %s is no answer" % (who, path), hint)
    if found.get("ok") is True:
        return found
    kind = _BY_EXIT_CODE.get(found.get("exit"), errors.RecuseError)  # type: ignore[arg-type]
    told = found.get("hint")
    raise kind(str(found.get("error", "%s refused" % who)), told if isinstance(told, str) else None)


def peer_uid(writer: asyncio.StreamWriter) -> int:
    """Say whom the kernel takes the client of a unix socket for."""
    sock = writer.get_extra_info("socket")
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    uid: int = struct.unpack("3i", raw)[1]
    return uid


async def watch(
    path: str, wake: Callable[[], None], reload: Callable[[], None], log: logging.Logger
) -> None:
    """Follow the agent's news for good, over its restarts.

    Calls `wake` when the ledger or the spool may have something new, which is also whenever the
    agent is found again, and `reload` when the agent has read its configuration anew.
    """
    delay, told = 0.1, False
    while True:
        try:
            reader, writer = await asyncio.open_unix_connection(path, limit=1 << 20)
            try:
                writer.write(b'{"verb": "watch"}\n')
                wake()
                async for line in reader:
                    delay, told = 0.1, False
                    _heed(line, wake, reload, log)
            finally:
                writer.close()
        except (OSError, ValueError) as error:
            if not told:
                log.info("agent cannot be watched, proceeding: %s", error)
                told = True
        await asyncio.sleep(delay)
        delay = min(30.0, delay * 2)


def _heed(
    line: bytes, wake: Callable[[], None], reload: Callable[[], None], log: logging.Logger
) -> None:
    try:
        news: object = json.loads(line)
    except (ValueError, RecursionError):
        news = None
    if not isinstance(news, dict):
        log.warning("agent's news is no json object, ignoring it")
    elif news.get("ok") is False:
        log.warning("agent does not let itself be watched: %r", news.get("error"))
    elif news.get("reload"):
        reload()
    else:
        wake()
