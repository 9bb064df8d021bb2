"""Gives `endpoint`, a real HTTP server on loopback that records each request and answers as a test tells it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import h11
import msgspec
import pytest_asyncio


@dataclass
class Request:
    """What came in; header names are lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Answer:
    """What goes out; `closes` breaks the connection instead, `delay_s` waits before."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    closes: bool = False


class EndpointServer:
    """An HTTP/1.1 server in the test's own event loop.

    Attributes:
        requests: all that it received, in order.
        connections: how many connections it has seen.
        answers: given in turn; the last one stays.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.connections = 0
        self.answers: list[Answer] = [Answer()]
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Where the endpoint is."""
        return f"http://127.0.0.1:{self.port}/api/trigger"

    def will_answer(self, *answers: Answer | dict[str, Any]) -> None:
        """Sets the answers; a dict is the JSON body of a 200."""
        self.answers = [
            answer if isinstance(answer, Answer) else Answer(body=msgspec.json.encode(answer)) for answer in answers
        ]

    async def start(self) -> None:
        """Listens on a free port."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stops listening and ends the connections."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            await self._serve(h11.Connection(h11.SERVER), reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _serve(self, http: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head: h11.Request | None = None
        body = b""
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await reader.read(65536))
            elif isinstance(event, h11.Request):
                head, body = event, b""
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                headers = {name.decode(): value.decode() for name, value in head.headers}
                self.requests.append(Request(head.method.decode(), head.target.decode(), headers, body))
                if not await self._answer(http, writer):
                    return
                http.start_next_cycle()
            else:
                return

    async def _answer(self, http: h11.Connection, writer: asyncio.StreamWriter) -> bool:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        await asyncio.sleep(answer.delay_s)
        if answer.closes:
            writer.transport.abort()
            return False
        headers = {"content-length": str(len(answer.body)), "content-type": "application/json"} | answer.headers
        writer.write(http.send(h11.Response(status_code=answer.status, headers=list(headers.items()))) or b"")
        writer.write(http.send(h11.Data(data=answer.body)) or b"")
        writer.write(http.send(h11.EndOfMessage()) or b"")
        await writer.drain()
        return http.our_state is not h11.MUST_CLOSE


@pytest_asyncio.fixture
async def endpoint() -> AsyncIterator[EndpointServer]:
    """A listening endpoint that answers `{}`."""
    server = EndpointServer()
    await server.start()
    yield server
    await server.stop()
