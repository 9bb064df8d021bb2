"""Gives `mail_server`, a real SMTP server on loopback that refuses and breaks as a test tells it."""

from __future__ import annotations

import asyncio
import email
import email.policy
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from email.message import EmailMessage
from typing import Any, Literal

import pytest_asyncio
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

Stage = Literal["MAIL", "RCPT", "DATA"]


class MailServer:
    """An SMTP server in the test's own event loop.

    Attributes:
        mails: the messages that it accepted, in order.
        connections: how many connections it has seen.
        refused_for_ever: addresses that are answered with 550.
        refused_once: addresses that are answered with 450 the first time.
        breaks: how often still to close the connection, without a reply, at a stage.
        closing: how often still to answer MAIL with 421 and close.
        reply_at_data: answered instead of accepting, if set.
        delay_s: how long each mail takes.
        offers_smtputf8: whether it takes addresses that are not ASCII.
        password: set it to ask for a login; `logins` has the names and passwords that came.
        busiest: the most connections that were open at a time.
    """

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.connections = 0
        self.busiest = 0
        self.refused_for_ever: set[str] = set()
        self.refused_once: set[str] = set()
        self.breaks: Counter[Stage] = Counter()
        self.closing = 0
        self.reply_at_data: str | None = None
        self.delay_s = 0.0
        self.offers_smtputf8 = True
        self.logins: list[tuple[bytes, bytes]] = []
        self.password: bytes | None = None
        self.port = 0
        self._seen: list[SMTP] = []
        self._server: asyncio.Server | None = None

    async def start(self, *, tls: ssl.SSLContext | None = None, starttls: ssl.SSLContext | None = None) -> None:
        """Listens on a free port, or again on the one that it had."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: self._connected(starttls), "127.0.0.1", self.port, ssl=tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stops listening and closes every connection."""
        if self._server is not None:
            self._server.close()
        self.close_connections()
        await asyncio.sleep(0)

    def open_connections(self) -> int:
        """How many clients are connected now."""
        self._seen = [one for one in self._seen if one.transport is not None and not one.transport.is_closing()]
        return len(self._seen)

    def close_connections(self) -> None:
        """Closes what is open, as a server does with idle clients."""
        for connection in self._seen:
            if connection.transport is not None:
                connection.transport.close()

    def settings(self, **more: Any) -> dict[str, Any]:
        """`[app.smtp]` for this server."""
        return {
            "host": "127.0.0.1",
            "port": self.port,
            "tls": "none",
            "sender": "Platform <platform@sender.example>",
            "helo_name": "client.example",
            "timeout_s": 5.0,
        } | more

    def _connected(self, starttls: ssl.SSLContext | None) -> SMTP:
        self.connections += 1
        connection = SMTP(
            _Hooks(self),
            hostname="server.example",
            enable_SMTPUTF8=self.offers_smtputf8,
            tls_context=starttls,
            authenticator=self._authenticate if self.password is not None else None,
            auth_require_tls=False,
            loop=asyncio.get_running_loop(),
        )
        self._seen.append(connection)
        return connection

    def _authenticate(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any
    ) -> AuthResult:
        assert isinstance(data, LoginPassword)
        self.logins.append((data.login, data.password))
        return AuthResult(success=data.password == self.password, handled=False)


class _Hooks:
    """aiosmtpd's handler: what the server answers at each stage."""

    def __init__(self, server: MailServer) -> None:
        self._server = server

    async def handle_MAIL(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        self._maybe_break("MAIL", server)
        if self._server.closing:
            self._server.closing -= 1
            asyncio.get_running_loop().call_later(0.01, _transport(server).close)
            return "421 4.3.2 closing, try again"
        envelope.mail_from = address
        return "250 2.1.0 ok"

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        self._maybe_break("RCPT", server)
        if address in self._server.refused_for_ever:
            return "550 5.1.1 no such mailbox"
        if address in self._server.refused_once:
            self._server.refused_once.discard(address)
            return "450 4.2.0 greylisted, try again"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 ok"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        self._server.busiest = max(self._server.busiest, self._server.open_connections())
        if self._server.delay_s:
            await asyncio.sleep(self._server.delay_s)
        self._maybe_break("DATA", server)
        if self._server.reply_at_data is not None:
            return self._server.reply_at_data
        assert isinstance(envelope.content, bytes)
        message = email.message_from_bytes(envelope.content, policy=email.policy.SMTP)
        assert isinstance(message, EmailMessage)
        self._server.mails.append(message)
        return "250 2.0.0 accepted"

    def _maybe_break(self, stage: Stage, server: SMTP) -> None:
        if self._server.breaks[stage]:
            self._server.breaks[stage] -= 1
            _transport(server).abort()
            raise ConnectionResetError


def _transport(connection: SMTP) -> asyncio.WriteTransport:
    assert isinstance(connection.transport, asyncio.WriteTransport)
    return connection.transport


@pytest_asyncio.fixture
async def mail_server() -> AsyncIterator[MailServer]:
    """A listening server without TLS; `stop` and `start` it again to change that."""
    server = MailServer()
    await server.start()
    yield server
    await server.stop()
