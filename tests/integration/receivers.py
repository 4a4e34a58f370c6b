"""Receivers of notices that are real, and misbehave on demand: a mail server and a webhook."""

from __future__ import annotations

import asyncio
import email
import email.policy
import ssl
from datetime import datetime, timezone
from email.message import EmailMessage
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, cast

from aiohttp import web
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from recuse import collector


def make_context(directory: Path) -> Tuple[ssl.SSLContext, Path]:
    """Make a certificate for this host; give what a server needs, and what a client trusts."""
    directory.mkdir(exist_ok=True)
    cert, key = directory / "tls.crt", directory / "tls.key"
    collector.make_certificate(cert, key, ["127.0.0.1"], datetime.now(timezone.utc))
    return collector.tls_context(cert, key), cert


class Hook:
    """A receiver of webhooks, over TLS; `moods` are what it does on the next requests."""

    def __init__(self, directory: Path) -> None:
        self._context, self.cert = make_context(directory)
        self.moods: List[str] = []
        self.got: List[Tuple[Dict[str, str], bytes]] = []
        self.asked = 0
        self.hanging = asyncio.Event()
        self.released = asyncio.Event()
        self.port = 0
        self._runner: Optional[web.AppRunner] = None

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}/hook/geheim-pfad?token=geheim-token"

    async def start(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self._answer)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(
            self._runner, "127.0.0.1", self.port, ssl_context=self._context, shutdown_timeout=0.1
        )
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        self.released.set()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        body = await request.read()
        mood = self.moods.pop(0) if self.moods else ""
        if mood == "hang":
            self.hanging.set()
            await self.released.wait()
        if mood == "drop":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if mood == "redirect":
            return web.Response(status=307, headers={"Location": "/elsewhere"})
        status, _, retry_after = mood.partition(" ")
        if status.isdigit():
            headers = {"Retry-After": retry_after} if retry_after else {}
            return web.Response(status=int(status), headers=headers)
        self.got.append(({key.lower(): one for key, one in request.headers.items()}, body))
        if mood == "drop-after":
            assert request.transport is not None
            request.transport.abort()
        return web.Response(status=204)


class MailServer:
    """A mail server; `moods` are what it does with the next mails."""

    def __init__(self, directory: Path, password: str = "", implicit_tls: bool = False) -> None:
        self._context, self.cert = make_context(directory)
        self._password = password
        self._implicit_tls = implicit_tls
        self.moods: List[str] = []
        self.got: List[EmailMessage] = []
        self.envelopes: List[Envelope] = []
        self.hanging = asyncio.Event()
        self.released = asyncio.Event()
        self.encrypted: List[bool] = []
        self.port = 0
        self._server: Optional[asyncio.AbstractServer] = None
        self._protocols: List[SMTP] = []

    async def start(self) -> None:
        def check(server: Any, session: Any, envelope: Any, mechanism: Any, data: Any) -> Any:
            good = isinstance(data, LoginPassword) and data.password == self._password.encode()
            return AuthResult(success=good, handled=False)

        def make() -> SMTP:
            made = SMTP(
                self,
                loop=asyncio.get_running_loop(),
                hostname="mail.test",
                tls_context=None if self._implicit_tls else self._context,
                require_starttls=bool(self._password) and not self._implicit_tls,
                auth_required=bool(self._password),
                auth_require_tls=not self._implicit_tls,
                authenticator=check,
            )
            self._protocols.append(made)
            return made

        self._server = await asyncio.get_running_loop().create_server(
            make, "127.0.0.1", self.port, ssl=self._context if self._implicit_tls else None
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self.released.set()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None
        for protocol in self._protocols:
            if protocol.transport is not None:
                protocol.transport.abort()
        self._protocols.clear()

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        mood = self.moods.pop(0) if self.moods else ""
        if mood == "hang":
            self.hanging.set()
            await self.released.wait()
        if mood == "drop":
            assert server.transport is not None
            server.transport.abort()
            return "421 bye"
        if mood[:1].isdigit():
            return mood
        self.encrypted.append(session.ssl is not None or self._implicit_tls)
        self.envelopes.append(envelope)
        raw = cast(bytes, envelope.original_content)
        mail = email.message_from_bytes(raw, policy=email.policy.default)
        self.got.append(cast(EmailMessage, mail))
        if mood == "drop-after":
            assert server.transport is not None
            server.transport.abort()
        return "250 taken"
