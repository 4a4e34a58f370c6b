"""Runs in the network of a throw-away host: a mail server and a webhook that tell what they get.

Prints one JSON line for each thing that arrives: how, when (CLOCK_REALTIME, which the host shares)
and what.
"""

from __future__ import annotations

import asyncio
import email
import email.policy
import json
import time
from typing import Any

from aiohttp import web
from aiosmtpd.smtp import SMTP, Envelope, Session


def say(how: str, **more: Any) -> None:
    print(json.dumps({"how": how, "at": time.time(), **more}), flush=True)


class Mail:
    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        raw: Any = envelope.original_content
        mail = email.message_from_bytes(raw, policy=email.policy.default)
        say(
            "mail",
            subject=str(mail["Subject"]),
            id=str(mail["X-Recuse-Entry"]),
            message_id=str(mail["Message-ID"]),
        )
        return "250 taken"


async def hook(request: web.Request) -> web.Response:
    body = await request.read()
    event = json.loads(body)
    headers = {key.lower(): value for key, value in request.headers.items()}
    say("webhook", id=event["id"], headers=headers, body=body.decode())
    return web.Response(status=204)


async def hang(request: web.Request) -> web.Response:
    say("hanging")
    await asyncio.Event().wait()
    return web.Response()


async def main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(Mail(), loop=loop), "127.0.0.1", 2525)
    app = web.Application()
    app.router.add_post("/hook", hook)
    app.router.add_post("/hang", hang)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 8580).start()
    say("ready")
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
