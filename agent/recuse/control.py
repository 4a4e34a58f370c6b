"""Ask the agent over its control socket: one line of JSON there, one line back."""

from __future__ import annotations

import json
import socket
from typing import Any, Mapping

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
    )
}


def ask(
    request: Mapping[str, Any],
    path: str = CONTROL_SOCKET,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> dict[str, Any]:
    """Send one request and return the agent's answer.

    Raises: AgentUnreachable; else the error that the agent answered with.
    """
    hint = "see: systemctl status recuse-agent; recuse doctor"
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
            "agent does not answer within %g s on %s" % (timeout_seconds, path), hint
        ) from None
    except OSError as e:
        raise errors.AgentUnreachable(
            "agent cannot be asked on %s: %s" % (path, (e.strerror or str(e)).lower()), hint
        ) from None
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise errors.AgentUnreachable("agent's answer on %s is no answer" % path, hint)
    if found.get("ok") is True:
        return found
    kind = _BY_EXIT_CODE.get(found.get("exit"), errors.RecuseError)  # type: ignore[arg-type]
    told = found.get("hint")
    raise kind(str(found.get("error", "agent refused")), told if isinstance(told, str) else None)
