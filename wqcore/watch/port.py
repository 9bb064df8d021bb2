"""A small HTTP server for scrapers and probes: bounded in time, size and number, whatever its clients do.

It answers GET and HEAD and closes the connection. A request may have `HEAD_BYTES_MAX` and everything may take `LIMIT_S`;
when more than `CONNECTIONS_MAX` are open, the oldest is dropped, so that clients who say nothing keep no probe out. It has
a thread and an event loop of its own and answers also when the process's main loop stands still. A crash leaves nothing.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

log = logging.getLogger("wqcore.watch")

HEAD_BYTES_MAX = 8192
LIMIT_S = 5.0
CONNECTIONS_MAX = 32
BIND_AGAIN_S = 1.0
_REASONS = {
    200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 408: "Request Timeout",
    431: "Request Header Fields Too Large", 500: "Internal Server Error", 503: "Service Unavailable",
}  # fmt: skip


class Answer(NamedTuple):
    """What is sent back."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


Respond = Callable[[str], Answer]
"""Makes the answer of a page; it is given the request's Accept header, "" when there is none."""


def problem(host: str, port: int) -> str | None:
    """Why this process cannot listen there, as a sentence that names the options; None when it can."""
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
    except OSError as error:
        return (
            f"watch.port = {port}: cannot listen on {host}:{port} ({error.strerror or error}): set another watch.port or "
            "watch.host, or leave watch.port out"
        )
    return None


class Port:
    """The server.

    Args:
        pages: path → what makes its answer.
    """

    def __init__(self, host: str, port: int, pages: dict[str, Respond]) -> None:
        self._host, self._port, self._pages = host, port, pages
        self._open: dict[asyncio.Task[None], None] = {}

    def start(self) -> None:
        """Starts the thread; it ends with the process."""
        threading.Thread(target=lambda: asyncio.run(self._run()), name="wqcore port", daemon=True).start()

    async def _run(self) -> None:
        said = False
        while True:
            try:
                server = await asyncio.start_server(self._connected, self._host, self._port, limit=HEAD_BYTES_MAX)
            except OSError as error:
                # the master has listened here before it forked: someone has come in between, and may leave
                if not said:
                    log.error("cannot listen on %s:%d, trying again every second: %s", self._host, self._port, error)
                said = True
                await asyncio.sleep(BIND_AGAIN_S)
            else:
                await server.serve_forever()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= CONNECTIONS_MAX:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.cancel()

        def over(done: asyncio.Task[None]) -> None:
            self._open.pop(done, None)
            if done.cancelled() or done.exception() is not None:
                _drop(writer)

        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._open[task] = None
        task.add_done_callback(over)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(LIMIT_S):
            writer.write(await self._exchange(reader))
            await writer.drain()
            writer.close()
            await writer.wait_closed()

    async def _exchange(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _response(Answer(431, b"the request is too large\n"))
        except asyncio.IncompleteReadError:
            return _response(Answer(400, b"the request is incomplete\n"))
        line, *fields = head.decode("latin-1").split("\r\n")
        words = line.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _response(Answer(400, b"this is no HTTP/1 request\n"))
        if words[0] not in ("GET", "HEAD"):
            return _response(Answer(405, b"GET and HEAD only\n"))
        return _response(self._answer(words[1].partition("?")[0], fields), body=words[0] == "GET")

    def _answer(self, path: str, fields: list[str]) -> Answer:
        page = self._pages.get(path)
        if page is None:
            return Answer(404, f"there are {', '.join(self._pages)}\n".encode())
        pairs = (field.partition(":") for field in fields)
        accept = next((value.strip() for name, _, value in pairs if name.lower() == "accept"), "")
        try:
            return page(accept)
        except Exception:  # a probe must hear something, and the next request finds the server alive
            log.exception("cannot answer %s", path)
            return Answer(500, b"an error, which the log tells\n")


def _drop(writer: asyncio.StreamWriter) -> None:
    """Ends a connection whose client was slow, has gone, or has to make room: at once, or the kernel would go on sending."""
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _response(answer: Answer, *, body: bool = True) -> bytes:
    allow = "Allow: GET, HEAD\r\n" if answer.status == 405 else ""
    head = (
        f"HTTP/1.1 {answer.status} {_REASONS[answer.status]}\r\nContent-Type: {answer.content_type}\r\n"
        f"Content-Length: {len(answer.body)}\r\n{allow}Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode("latin-1") + (answer.body if body else b"")
