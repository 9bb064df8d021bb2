"""Mails: each is accepted by the mail server at least once, or ends discarded with the server's reason.

A mail is made from the job's args, id and creation time alone, so every attempt sends the same Message-ID and Date: a
duplicate can be recognised. The server's answer decides: accepted → completed; 4xx → retry; 5xx → discarded; anything
else (no connection, time-out, closed in the middle) → retry. A worker that dies after the server's "250" and before the
completion is stored sends the mail again; see `handlers.smtp` for what it leaves behind.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from email.errors import MessageError
from email.message import EmailMessage
from email.policy import SMTP, SMTPUTF8
from email.utils import format_datetime

import aiosmtplib
import msgspec

import wqcore
from handlers import smtp

logger = logging.getLogger(__name__)


@wqcore.kind("scheduleEmail", queue="internal-queue", priority=100, max_attempts=3, timeout_s=30)
class ScheduleEmail(msgspec.Struct, frozen=True, rename="camel"):
    """Sends one mail.

    Attributes:
        to (str): one address, with or without a name.
        subject (str): one line.
        html (str), text (str): the two forms of the body; the reader's program chooses.
    """

    to: str
    subject: str
    html: str
    text: str


@wqcore.handler
async def schedule_email(args: ScheduleEmail, job: wqcore.Job) -> None:
    """Sends the mail by SMTP, from the sender in `[app.smtp]` (see `handlers.smtp.Smtp`).

    Raises:
        wqcore.Discard: the server refused for good (5xx), or the args do not make a mail.
        wqcore.Retry: the server refused for now (4xx), or there was no clear answer.
        wqcore.ConfigError: `[app.smtp]` is missing or wrong.
    """
    pool = await smtp.connections()
    recipient = _checked("to", smtp.bare_address, args.to)
    message = compose(args, job, pool.settings.sender)
    retry_after_s = pool.settings.retry_after_s
    try:
        await pool.deliver(recipient, message)
    except aiosmtplib.SMTPResponseException as reply:
        answer = f"SMTP {reply.code} {reply.message}"
        if 500 <= reply.code <= 599:
            raise wqcore.Discard(answer) from reply
        raise wqcore.Retry(answer, after=retry_after_s) from reply
    except smtp.AddressNotSupportedError as error:
        raise wqcore.Discard(str(error)) from error
    except (aiosmtplib.SMTPException, OSError) as error:
        raise wqcore.Retry(f"SMTP {type(error).__name__}: {error}", after=retry_after_s) from error
    logger.debug("mail of job %d accepted", job.id)


def compose(args: ScheduleEmail, job: wqcore.Job, sender: str) -> bytes:
    """The mail as it goes over the wire: ASCII, unless an address of its envelope is not.

    `sender` is a checked address, with or without a name. Raises wqcore.Discard when a field cannot stand in a mail.
    """
    sender_address = smtp.bare_address(sender)
    is_ascii = (sender_address + _checked("to", smtp.bare_address, args.to)).isascii()
    policy = (SMTP if is_ascii else SMTPUTF8).clone(cte_type="7bit")
    message = EmailMessage(policy=policy)
    try:
        message["From"] = sender
        message["To"] = args.to
        message["Subject"] = _checked("subject", smtp.header_line, args.subject)
        message["Date"] = format_datetime(job.created_at)
        message["Message-ID"] = message_id(job, sender_address)
        message["X-Job-Id"] = str(job.id)
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(args.text)
        message.add_alternative(args.html, subtype="html")
        return message.as_bytes(policy=policy)
    except (MessageError, ValueError) as error:  # e.g. a lone surrogate, which is no text
        raise wqcore.Discard(f"the args do not make a mail: {error}") from error


def message_id(job: wqcore.Job, sender_address: str) -> str:
    """The same for all attempts of a job; the creation time tells apart databases that count from 1."""
    domain = sender_address.rpartition("@")[2]
    return f"<job-{job.id}.{int(job.created_at.timestamp() * 1_000_000)}@{domain}>"


def _checked(field: str, check: Callable[[str], str], text: str) -> str:
    """What `check` makes of the field. Raises wqcore.Discard, which names it."""
    try:
        return check(text)
    except ValueError as error:
        raise wqcore.Discard(f"{field}: {error}") from error
