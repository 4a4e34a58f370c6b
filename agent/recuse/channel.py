"""Ways to tell admins: mail, webhooks, and what the Apprise library knows.

Part of recuse-notify. Each sends one notice and says truthfully whether it arrived. No error that
comes out of here holds a secret: neither a password nor more of a URL than its host.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import smtplib
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Callable, List, Mapping, Optional, Protocol, Tuple
from urllib.parse import urlsplit

from recuse import __version__, notifyconf
from recuse.adminnotice import (
    CLOUDEVENTS_TYPE,
    Notice,
    as_cloudevent,
    as_mail,
    as_text,
    one_line,
    sign_webhook,
    subject_line,
)
from recuse.connections import Connections, trust
from recuse.errors import RecuseError
from recuse.notifyconf import Channel

if TYPE_CHECKING:
    import aiohttp

MAX_RETRY_AFTER_S = 3600.0
_log = logging.getLogger("recuse-notify")


class NotSent(RecuseError):
    """A notice did not arrive, or nobody knows whether it did. It may later."""

    def __init__(self, message: str, retry_after_s: Optional[float] = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Refused(NotSent):
    """The receiver will not take this one notice, but may take others."""


class Gone(NotSent):
    """The receiver wants no more, ever."""


class Way(Protocol):
    """What each kind of channel does."""

    async def send(self, notice: Notice) -> None:
        """Return when the receiver has taken the notice. Raises: NotSent, ConfigError"""
        ...

    async def close(self) -> None: ...


def open_way(channel: Channel, org: str) -> Way:
    """Make the way of a channel; nothing is connected or read before it is used."""
    kinds: Mapping[str, Callable[[Channel, str], Way]] = {
        "smtp": SmtpWay,
        "webhook": WebhookWay,
        "apprise": AppriseWay,
    }
    return kinds[channel.type](channel, org)


def _say(error: BaseException) -> str:
    """Say what is known to hold nothing secret of an error."""
    if isinstance(error, (asyncio.TimeoutError, socket.timeout)):
        return "no answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate is not accepted: {error.verify_message}"
    if isinstance(error, OSError) and error.strerror:
        return one_line(error.strerror).lower()
    return type(error).__name__


class _Threaded:
    """Runs what waits in a thread of its own, so that one that hangs delays nobody else."""

    def __init__(self, channel: Channel, org: str) -> None:
        self._channel = channel
        self._org = org
        self._thread: Optional[ThreadPoolExecutor] = None
        self._running: Optional["asyncio.Future[None]"] = None

    async def _call(self, function: Callable[[Notice], None], notice: Notice) -> None:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix=self._channel.type)
        running = asyncio.get_running_loop().run_in_executor(self._thread, function, notice)
        # Should nobody wait for it any more.
        running.add_done_callback(lambda over: over.cancelled() or over.exception())
        self._running = running
        done, _ = await asyncio.wait({running}, timeout=self._channel.timeout)
        if not done:
            self._cut()
            # Whatever becomes of it, the next is not to wait behind it.
            self._thread.shutdown(wait=False)
            self._thread = None
            raise NotSent(f"no end within {self._channel.timeout} s")
        running.result()

    def _cut(self) -> None:
        """End what the thread waits for, if that can be done."""

    async def close(self) -> None:
        self._cut()
        if self._thread is not None:
            is_idle = self._running is None or self._running.done()
            self._thread.shutdown(wait=is_idle)  # nobody waits for one that hangs
            self._thread = None


class SmtpWay(_Threaded):
    """Mail, by SMTP."""

    def __init__(self, channel: Channel, org: str) -> None:
        super().__init__(channel, org)
        self._connection: Optional[smtplib.SMTP] = None

    async def send(self, notice: Notice) -> None:
        await self._call(self._send, notice)

    def _cut(self) -> None:
        connection = self._connection
        sock = connection.sock if connection is not None else None
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def _send(self, notice: Notice) -> None:
        channel = self._channel
        login = notifyconf.read_credentials(channel.credentials) if channel.credentials else None
        mail = as_mail(notice, channel.sender, channel.to, self._org, channel.commands)
        where = f"mail server {channel.host}:{channel.smtp_port}"
        try:
            with self._connect() as connection:
                self._connection = connection
                if channel.tls == "starttls":
                    connection.starttls(context=trust(channel.ca, NotSent))
                if login is not None:
                    connection.login(*login)
                refused = connection.send_message(mail, channel.sender, list(channel.to))
        except smtplib.SMTPRecipientsRefused as error:
            codes = [code for code, _ in error.recipients.values()]
            kind = Refused if all(code >= 500 for code in codes) else NotSent
            raise kind(f"{where} takes mail for none of the recipients: {codes[0]}") from error
        except (smtplib.SMTPDataError, smtplib.SMTPSenderRefused) as error:
            kind = Refused if error.smtp_code >= 500 else NotSent
            raise kind(f"{where} does not take the mail: {_answer(error, login)}") from error
        except smtplib.SMTPAuthenticationError as error:
            raise NotSent(f"{where} does not accept the password: {error.smtp_code}") from error
        except smtplib.SMTPResponseException as error:
            raise NotSent(f"{where} answers {_answer(error, login)}") from error
        except smtplib.SMTPNotSupportedError as error:
            raise NotSent(f"{where} lacks what is needed: {one_line(error)}") from error
        except smtplib.SMTPServerDisconnected as error:
            raise NotSent(f"{where} hung up") from error
        except (smtplib.SMTPException, OSError, ValueError) as error:
            raise NotSent(f"{where}: {_say(error)}") from error
        finally:
            self._connection = None
        if refused:
            _log.warning("%s does not take mail for %s, proceeding", where, ", ".join(refused))

    def _connect(self) -> smtplib.SMTP:
        channel = self._channel
        if channel.tls == "tls":
            return smtplib.SMTP_SSL(
                channel.host, channel.smtp_port, timeout=channel.timeout,
                context=trust(channel.ca, NotSent),
            )  # fmt: skip
        return smtplib.SMTP(channel.host, channel.smtp_port, timeout=channel.timeout)


def _answer(error: smtplib.SMTPResponseException, login: Optional[Tuple[str, str]]) -> str:
    raw = error.smtp_error
    text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw)
    for secret in login or ():
        text = text.replace(secret, "…")
    return f"{error.smtp_code} {one_line(text, 120)}"


class WebhookWay:
    """CloudEvents over HTTPS, signed as Standard Webhooks says."""

    def __init__(
        self, channel: Channel, org: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._channel = channel
        self._org = org
        self._clock = clock
        self._session: Optional[aiohttp.ClientSession] = None
        self._connections = Connections()
        parts = urlsplit(channel.url)
        self._where = f"{parts.scheme}://{parts.hostname}"
        if parts.port is not None:
            self._where += f":{parts.port}"

    async def send(self, notice: Notice) -> None:
        import aiohttp

        assert self._channel.secret is not None
        secrets = notifyconf.read_secrets(self._channel.secret)
        body = as_cloudevent(notice, self._org, self._channel.commands)
        headers = {
            "Content-Type": CLOUDEVENTS_TYPE,
            "User-Agent": f"recuse-notify/{__version__}",
            **sign_webhook(secrets, notice.token, int(self._clock()), body),
        }
        try:
            async with self._open().post(
                self._channel.url, data=body, headers=headers, allow_redirects=False
            ) as response:
                status, retry_after = response.status, response.headers.get("Retry-After")
        except (aiohttp.ClientError, OSError, ValueError, asyncio.TimeoutError) as error:
            cause: BaseException = error
            if isinstance(error, aiohttp.ClientConnectorCertificateError):
                cause = error.certificate_error
            elif isinstance(error, aiohttp.ClientConnectorError):
                cause = error.os_error
            raise NotSent(f"{self._where}: {_say(cause)}") from error
        if not 200 <= status < 300:
            raise self._error(status, retry_after)

    def _error(self, status: int, retry_after: Optional[str]) -> NotSent:
        told = f"{self._where} answers {status}"
        if status == 410:
            return Gone(f"{told}: it wants no more")
        if 300 <= status < 400:
            return NotSent(f"{told}: redirections are not followed")
        if status in (400, 413, 415, 422):
            return Refused(told)
        wait = self._seconds(retry_after) if status in (429, 503) else None
        return NotSent(told, wait)

    def _seconds(self, retry_after: Optional[str]) -> Optional[float]:
        if retry_after is None:
            return None
        try:
            seconds = float(int(retry_after))
        except (ValueError, OverflowError):
            try:
                seconds = parsedate_to_datetime(retry_after).timestamp() - self._clock()
            except (TypeError, ValueError, OverflowError):
                return None
        return min(MAX_RETRY_AFTER_S, max(0.0, seconds))

    def _open(self) -> aiohttp.ClientSession:
        import aiohttp

        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=self._connections.connector(
                    ssl=trust(self._channel.ca, NotSent), limit=2
                ),
                timeout=aiohttp.ClientTimeout(total=self._channel.timeout),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=True,
            )
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None
            await self._connections.close()


class AppriseWay(_Threaded):
    """Whatever the Apprise library knows how to reach, if it is installed."""

    async def send(self, notice: Notice) -> None:
        await self._call(self._send, notice)

    def _send(self, notice: Notice) -> None:
        assert self._channel.urls is not None
        urls: List[str] = notifyconf.read_urls(self._channel.urls)
        try:
            apprise: Any = importlib.import_module("apprise")
        except ImportError:
            raise NotSent("the Apprise library is not installed: apt install apprise") from None
        # It would log what it is given, and that holds passwords.
        logging.getLogger("apprise").disabled = True
        library = apprise.Apprise()
        for number, url in enumerate(urls, 1):
            if not library.add(url):
                raise NotSent(f"{self._channel.urls}: URL {number} is none that Apprise knows")
        try:
            done = library.notify(
                title=subject_line(notice), body=as_text(notice, self._channel.commands)
            )
        except Exception as error:  # plug-ins of others
            raise NotSent(f"Apprise: {type(error).__name__}") from None
        if not done:
            raise NotSent("Apprise could not reach every receiver")
