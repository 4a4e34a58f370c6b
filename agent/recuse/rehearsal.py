"""A login that nobody makes: PAM, our module and the agent, driven as sshd drives them.

Run as a program by checkup: modules of PAM belong in no process that has other work. Prints one
line of JSON, and is ended by an alarm if PAM does not come back. Imports nothing of recuse, so that
it runs from wherever the package is.
"""

from __future__ import annotations

import ctypes
import json
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Callable, List, Protocol

SERVICE = "recuse"
USER = "root"
LIMIT_SECONDS = 10
PAM_SUCCESS = 0
PAM_CONV = 5


class Authenticator(Protocol):
    """What is used of python-pam's PamAuthenticator."""

    handle: Any
    code: int
    reason: Any

    def authenticate(
        self, username: str, password: str, service: str, *, resetcreds: bool, call_end: bool
    ) -> bool: ...

    def open_session(self) -> int: ...

    def close_session(self) -> int: ...

    def end(self) -> int: ...


@dataclass
class Result:
    """How far it got: import, auth, open, close or done; `code` and `reason` are PAM's."""

    stage: str = "import"
    code: int = PAM_SUCCESS
    reason: str = ""
    open_ms: float = 0.0
    messages: List[str] = field(default_factory=list)


class _Message(ctypes.Structure):
    _fields_ = [("style", ctypes.c_int), ("text", ctypes.c_char_p)]


class _Response(ctypes.Structure):
    _fields_ = [("text", ctypes.c_void_p), ("code", ctypes.c_int)]


class _Conversation(ctypes.Structure):
    _fields_ = [("converse", ctypes.c_void_p), ("data", ctypes.c_void_p)]


_CONVERSE = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_int,
    ctypes.POINTER(ctypes.POINTER(_Message)),
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.c_void_p,
)


def listen(authenticator: Any, messages: List[str]) -> object:
    """Collect what modules say; the result must be kept for as long as PAM is used.

    python-pam frees its own conversation when authenticate() returns, so a module that speaks when
    the session is opened, as ours does of a refusal, would call into nothing.
    """
    calloc = ctypes.CDLL(None).calloc
    calloc.restype, calloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t, ctypes.c_size_t]

    def converse(count: int, said: Any, response: Any, _: object) -> int:
        for at in range(count):
            messages.append((said[at].contents.text or b"").decode("utf-8", "replace"))
        response[0] = calloc(count, ctypes.sizeof(_Response))  # PAM frees it
        return PAM_SUCCESS

    called = _CONVERSE(converse)
    conversation = _Conversation(ctypes.cast(called, ctypes.c_void_p), None)
    code = authenticator.pam_set_item(
        authenticator.handle,
        PAM_CONV,
        ctypes.cast(ctypes.pointer(conversation), ctypes.c_void_p),
    )
    if code != PAM_SUCCESS:
        raise OSError("pam_set_item() failed with %d" % code)
    return called, conversation


def rehearse(
    authenticator: Authenticator,
    listen: Callable[[Authenticator, List[str]], object] = listen,
    clock: Callable[[], float] = time.monotonic,
) -> Result:
    """Open and close a session of our own service, for root, whom nothing is asked of."""
    result = Result("auth")

    def went(code: int) -> bool:
        result.code, result.reason = code, str(authenticator.reason or "")
        return code == PAM_SUCCESS

    permitted = authenticator.authenticate(USER, "", SERVICE, resetcreds=False, call_end=False)
    if not permitted:
        went(authenticator.code)
        authenticator.end()
        return result
    kept = listen(authenticator, result.messages)
    result.stage = "open"
    began = clock()
    opened = went(authenticator.open_session())
    result.open_ms = round((clock() - began) * 1000, 1)
    if opened:
        result.stage = "close"
        if went(authenticator.close_session()):
            result.stage = "done"
    authenticator.end()
    del kept
    return result


def main() -> int:
    signal.alarm(LIMIT_SECONDS)
    result = Result()
    try:
        from pam import PamAuthenticator
    except ImportError as e:
        result.reason = str(e)
    else:
        result = rehearse(PamAuthenticator())
    sys.stdout.write(json.dumps(asdict(result)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
