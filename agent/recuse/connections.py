"""Connections to servers: whom they trust, and those of aiohttp, which outlive its close()."""

from __future__ import annotations

import asyncio
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Union

if TYPE_CHECKING:
    import aiohttp

CLOSING_SECONDS = 2.0  # for peers to say goodbye; then they are hung up on


def trust(ca: Union[str, Path, None], error: Callable[[str], Exception]) -> ssl.SSLContext:
    """Trust this file of CAs (or self-signed certificates) alone, or else the system's.

    Raises: what `error` makes of the fault
    """
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as fault:  # ssl.SSLError is one
        raise error(f"ca file {ca} cannot be used: {fault.strerror or fault}") from fault
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


class Connections:
    """What connectors made here have open: it outlives their close(), and a process its loop."""

    def __init__(self) -> None:
        self._transports: Dict[asyncio.Transport, Any] = {}  # with their sockets

    def connector(self, path: str = "", **options: Any) -> aiohttp.BaseConnector:
        """Make a connector over TCP or, with a path, to that socket; options are aiohttp's."""
        import aiohttp

        kind: Any = aiohttp.UnixConnector if path else aiohttp.TCPConnector
        transports, still_open = self._transports, self._open

        class Connector(kind):  # type: ignore[misc]
            async def connect(self, *args: Any, **kwargs: Any) -> aiohttp.connector.Connection:
                connection = await super().connect(*args, **kwargs)
                transport = connection.transport
                for gone in transports.keys() - set(still_open()):
                    del transports[gone]
                if transport is not None and transport.get_extra_info("socket") is not None:
                    transports[transport] = transport.get_extra_info("socket")
                return connection  # type: ignore[no-any-return]

        made: aiohttp.BaseConnector = Connector(*([path] if path else []), **options)
        return made

    async def close(self) -> None:
        """Wait until all of them are closed, once their sessions are; hang up on the slow ones."""
        deadline = time.monotonic() + CLOSING_SECONDS
        await asyncio.sleep(0)
        while self._open() and time.monotonic() < deadline:
            await asyncio.sleep(0.005)
        for transport in self._open():
            transport.abort()
        self._transports.clear()
        await asyncio.sleep(0)

    def _open(self) -> List[asyncio.Transport]:
        return [one for one, sock in self._transports.items() if sock.fileno() >= 0]
