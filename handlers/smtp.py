"""A worker process has at most `connections_max` connections to the mail server, each used by one mail at a time.

Protocol: `Connections.deliver` takes an idle connection or opens one, sends MAIL, RCPT and DATA, and keeps the
connection if its state is known: the server accepted the mail, or refused it with a reply and then accepted RSET. After
anything else (a lost connection, a time-out, a cancellation, an odd reply, 421) the connection is dropped. A kept one
that turns out to be closed at MAIL, when nothing of the mail has been said, is replaced at once.

A process that dies in the middle leaves a half-said mail, which the server forgets, or a mail that was accepted and is
not yet known to be: that one is sent again, with the same Message-ID. Nothing here is written down.
"""

from __future__ import annotations

import asyncio
import functools
import re
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from email.errors import MessageError, NonASCIILocalPartDefect
from email.policy import SMTP
from typing import Annotated, Literal

import aiosmtplib
import msgspec
from msgspec import Meta

import wqcore

Seconds = Annotated[float, Meta(gt=0, le=3600)]

SERVICE_CLOSING = 421
"""RFC 5321 §3.8: the server closes the connection after this reply."""

QUIT_TIMEOUT_S = 1.0

HEADER_CHARS_MAX = 998
"""RFC 5322 §2.1.1: the longest line. Folding a longer text would take quadratic time."""


class AddressNotSupportedError(Exception):
    """The mail server cannot take an address of this mail, now or later."""


class Smtp(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The settings `[app.smtp]`.

    Attributes:
        sender (str): the From address, with or without a name; required.
        host (str): the mail server; default `localhost`.
        port (int | None): default 25 without TLS, 587 for `starttls`, 465 for `tls`.
        tls (str): `starttls` (default; a server that does not offer it is not used), `tls` from the first byte, or
            `none`, which sends login, password and mails in the clear.
        ca_file (str | None): PEM file of the authorities that may vouch for the server; default the system's.
        login (str | None), password (str | None): no login without them. Better in the environment, as
            `WQCORE_APP__SMTP__PASSWORD`.
        helo_name (str | None): what EHLO calls this host; default its full domain name.
        timeout_s (float): for connecting and for each reply; default 10. Keep it well below the kind's time-out of 30.
        connections_max (int): connections of one worker process; default 4.
        idle_max_s (float): a connection that was idle for longer is closed instead of reused; default 60.
        retry_after_s (float | None): delay after a temporary failure; default the kind's backoff policy.
    """

    sender: Annotated[str, Meta(min_length=3, max_length=500)]
    host: Annotated[str, Meta(min_length=1)] = "localhost"
    port: Annotated[int, Meta(ge=1, le=65535)] | None = None
    tls: Literal["none", "starttls", "tls"] = "starttls"
    ca_file: str | None = None
    login: str | None = None
    password: str | None = None
    helo_name: str | None = None
    timeout_s: Seconds = 10.0
    connections_max: Annotated[int, Meta(ge=1, le=1000)] = 4
    idle_max_s: Seconds = 60.0
    retry_after_s: Annotated[float, Meta(ge=0, le=604_800)] | None = None

    def __repr__(self) -> str:
        return f"<Smtp {self.host}:{self.port or 'default port'} {self.tls}>"


smtp = wqcore.settings_for("smtp", Smtp)


def header_line(text: str) -> str:
    """`text`, if a header can hold it without becoming another header. Raises ValueError."""
    if len(text) > HEADER_CHARS_MAX:
        raise ValueError(f"{text[:40]!r}… has {len(text)} characters; at most {HEADER_CHARS_MAX} fit in a header")
    if len(text.splitlines()) > 1 or any(character < " " or character == "\x7f" for character in text):
        raise ValueError(f"{text!r} contains a line break or another control character")
    return text


@functools.lru_cache(maxsize=256)  # the sender's is asked for with every mail, and parsing takes 0.3 ms
def bare_address(text: str) -> str:
    """The address of an envelope in `text`, which may add a name: `Jo <jo@a.example>` → `jo@a.example`.

    Raises ValueError unless there is exactly one address and it can inject nothing.
    """
    try:
        header = SMTP.header_factory("To", header_line(text))
        addresses, is_group = header.addresses, any(group.display_name is not None for group in header.groups)
    except (MessageError, IndexError, RecursionError) as error:  # what the standard parser raises for odd input
        raise ValueError(f"{text!r} is not a mail address: {error}") from error
    defects = [str(defect) for defect in header.defects if not isinstance(defect, NonASCIILocalPartDefect)]
    if len(addresses) != 1 or is_group or defects:
        raise ValueError("; ".join([f"{text!r} is not one mail address", *defects]))
    user, domain, bare = addresses[0].username, addresses[0].domain, addresses[0].addr_spec
    # A space, < or > in the user part comes quoted; aiosmtplib refuses all others.
    if not user or not domain or re.search(r'[\s<>"]', domain) or re.search(r"[^\S ]", bare):
        raise ValueError(f"{text!r} is not a mail address: it needs a user, @ and a domain")
    return str(bare)


class Connections:
    """A bounded pool of connections to one mail server.

    Raises ConfigError when the sender is not an address.
    """

    def __init__(self, settings: Smtp) -> None:
        try:
            self._sender = bare_address(settings.sender)
        except ValueError as error:
            raise wqcore.ConfigError([f"app.smtp.sender: {error}"]) from None
        self.settings = settings
        self._places = asyncio.Semaphore(settings.connections_max)
        self._idle: list[tuple[aiosmtplib.SMTP, float]] = []
        self._helo_name = settings.helo_name

    async def deliver(self, recipient: str, message: bytes) -> None:
        """Returns when the server has accepted the mail.

        Args:
            recipient: the bare address; one that is not ASCII needs a server with SMTPUTF8.
            message: headers and bodies, lines ended by CR LF.

        Raises aiosmtplib.SMTPResponseException (the server's reply), another aiosmtplib.SMTPException, OSError, or
        AddressNotSupportedError.
        """
        async with self._places:
            smtp = await self._begin(utf8=not (self._sender + recipient).isascii())
            is_clear = False
            try:
                await smtp.rcpt(recipient, encoding="utf-8")
                await smtp.data(message)
                is_clear = True
            except aiosmtplib.SMTPResponseException as reply:
                is_clear = reply.code != SERVICE_CLOSING and await _reset(smtp)
                raise
            finally:
                if is_clear:
                    self._idle.append((smtp, time.monotonic()))
                else:
                    smtp.close()

    async def close(self) -> None:
        """Says QUIT on the idle connections."""
        while self._idle:
            smtp, _ = self._idle.pop()
            with suppress(aiosmtplib.SMTPException, OSError):
                await smtp.quit(timeout=QUIT_TIMEOUT_S)
            smtp.close()

    async def _begin(self, *, utf8: bool) -> aiosmtplib.SMTP:
        """A connection that has accepted MAIL; idle ones that the server has closed are passed over."""
        while True:
            idle = self._take_idle()
            smtp = idle or await self._open()
            try:
                if utf8:
                    await _require_smtputf8(smtp)
                await smtp.mail(self._sender, options=["SMTPUTF8"] if utf8 else [], encoding="utf-8")
            except BaseException as error:  # also a cancellation leaves the connection in an unknown state
                smtp.close()
                if idle is None or not _is_closed_by_server(error):
                    raise
            else:
                return smtp

    def _take_idle(self) -> aiosmtplib.SMTP | None:
        """The connection used last, so that those that are not needed grow old."""
        while self._idle:
            smtp, since = self._idle.pop()
            if smtp.is_connected and time.monotonic() - since <= self.settings.idle_max_s:
                return smtp
            smtp.close()
        return None

    async def _open(self) -> aiosmtplib.SMTP:
        settings = self.settings
        smtp = aiosmtplib.SMTP(
            hostname=settings.host,
            port=settings.port,
            username=settings.login,
            password=settings.password,
            local_hostname=self._helo_name,
            timeout=settings.timeout_s,
            use_tls=settings.tls == "tls",
            start_tls=settings.tls == "starttls",
            cert_bundle=settings.ca_file,
        )
        await smtp.connect()
        self._helo_name = smtp.local_hostname  # looking up one's own name can take a DNS time-out: once is enough
        return smtp


async def _reset(smtp: aiosmtplib.SMTP) -> bool:
    """Whether the server forgot the refused mail, so that the connection can carry the next one."""
    try:
        await smtp.rset()
    except (aiosmtplib.SMTPException, OSError):
        return False
    return True


async def _require_smtputf8(smtp: aiosmtplib.SMTP) -> None:
    if smtp.is_ehlo_or_helo_needed:
        await smtp.ehlo()
    if not smtp.supports_extension("smtputf8"):
        raise AddressNotSupportedError("an address is not ASCII, and the mail server does not offer SMTPUTF8")


def _is_closed_by_server(error: BaseException) -> bool:
    if isinstance(error, aiosmtplib.SMTPResponseException):
        return error.code == SERVICE_CLOSING
    return isinstance(error, ConnectionError)


@wqcore.resource
async def connections() -> AsyncIterator[Connections]:
    """The worker's connections to the mail server of `[app.smtp]`. Raises ConfigError when the settings do not fit."""
    pool = Connections(smtp())
    try:
        yield pool
    finally:
        await pool.close()
