"""The demo's mail server, a process of its own: a mail is in its journal before its client hears "250".

It refuses `…@refused.example` for ever (550), and an address `…@greylisted.example` the first time (450). Each accepted
mail takes `--delay-ms`, half of it before the journal is written and half after, as a server has work on both sides.
A client that dies before the journal's line loses the mail here; one that dies after it does not know that it arrived.

A line of the journal is JSON: at (Unix time), to, job_id, message_id. `{"port": …}` is the first line on standard
output. The process ends on SIGTERM, and when its standard input ends: so it never outlives who started it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from email.parser import BytesHeaderParser
from email.policy import SMTP as SMTP_POLICY

import msgspec
import uvloop
from aiosmtpd.smtp import SMTP, Envelope, Session

REFUSED, GREYLISTED = "@refused.example", "@greylisted.example"


class Accepted(msgspec.Struct, frozen=True):
    """A line of the journal: one acceptance of one mail."""

    at: float
    to: str
    job_id: int
    message_id: str


class Hooks:
    """What the server answers; aiosmtpd calls it."""

    def __init__(self, journal_fd: int, delay_s: float) -> None:
        self._journal_fd = journal_fd
        self._delay_s = delay_s
        self._seen: set[str] = set()
        self._headers = BytesHeaderParser(policy=SMTP_POLICY)

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """Answers RCPT."""
        if address.endswith(REFUSED):
            return "550 5.1.1 no such mailbox here"
        if address.endswith(GREYLISTED) and address not in self._seen:
            self._seen.add(address)
            return "450 4.2.0 greylisted, please try again"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 ok"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        """Stores a mail, then says so. A client that hangs up meanwhile cancels this."""
        await asyncio.sleep(self._delay_s / 2)
        content = envelope.content if isinstance(envelope.content, bytes) else b""
        headers = self._headers.parsebytes(content, headersonly=True)
        for address in envelope.rcpt_tos:
            line = Accepted(time.time(), address, int(headers["X-Job-Id"]), str(headers["Message-ID"]))
            os.write(self._journal_fd, msgspec.json.encode(line) + b"\n")
        await asyncio.sleep(self._delay_s / 2)
        return "250 2.0.0 accepted"


async def serve(journal: str, delay_s: float) -> None:
    """Serves until SIGTERM or the end of standard input."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, over.set)
    loop.add_reader(sys.stdin, over.set)
    journal_fd = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    hooks = Hooks(journal_fd, delay_s)
    server = await loop.create_server(
        lambda: SMTP(hooks, hostname="server.example", ident="demo", enable_SMTPUTF8=True, loop=loop), "127.0.0.1", 0
    )
    sys.stdout.write(f'{{"port": {server.sockets[0].getsockname()[1]}}}\n')
    sys.stdout.flush()
    await over.wait()
    server.close()


def main() -> None:
    """Parses the command line and serves."""
    parser = argparse.ArgumentParser(description="the demo's mail server")
    parser.add_argument("--journal", required=True, help="file that accepted mails are appended to")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="how long an accepted mail takes")
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(options.journal, options.delay_ms / 1000))


if __name__ == "__main__":
    main()
