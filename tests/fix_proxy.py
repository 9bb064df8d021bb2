"""Gives `Proxy`, a TCP road to a PostgreSQL that can be slow, narrow, silent or cut, or swallow one reply.

It runs on an event loop in a thread of its own, so that tests of any sort can use it; its methods may be called from any
thread. It reads the messages of PostgreSQL's protocol (version 3, without TLS) on their way, so it knows statements:

    proxy.delay_s = 0.05          each piece of data waits so long, in both directions
    proxy.bytes_per_s = 10_000    and is paid for by its size
    proxy.silence() / .speak()    half-open: connections stay and are accepted, and nothing passes; then all of it does
    proxy.strand()                the connections that there are stay and hear nothing any more; new ones work
    proxy.deaf() / .hear()        notifications are lost, all else passes; then they pass again
    proxy.cut(reset=True)         every connection ends now, by RST or by FIN
    proxy.drop_reply(3)           the third statement from now is carried out, and its client loses the connection
    proxy.watch("from job", act)  act() before each statement with this text passes
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

_STARTUP = {80877102: "cancel", 80877103: "tls", 80877104: "gss"}
_CHUNK = 65536
_REPLY_ENDS = (b"Z", b"G", b"H")
"""Ready for the next statement; for COPY, ready for its data, or about to send it."""
_NOTIFICATION = b"A"


class Messages:
    """Cuts a stream into protocol messages. One byte of type and four of length, but for a client's first ones."""

    def __init__(self, *, of_client: bool) -> None:
        self._rest = b""
        self._starting = of_client

    def feed(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """The messages that are complete now: (type, content)."""
        found = []
        self._rest += data
        while True:
            head = 0 if self._starting else 1
            if len(self._rest) < head + 4:
                return found
            (length,) = struct.unpack_from("!i", self._rest, head)
            if len(self._rest) < head + length:
                return found
            kind, content = self._rest[:head], self._rest[head + 4 : head + length]
            self._rest = self._rest[head + length :]
            if self._starting and struct.unpack_from("!i", content)[0] not in _STARTUP:
                self._starting = False
            found.append((kind, content))


class _Link:
    """One client's connection and the one to the server that belongs to it."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.proxy = proxy
        self.client = (reader, writer)
        self.server: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.texts: dict[bytes, bytes] = {}
        self.bound = b""
        self.swallows: bytes | None = None
        """The statement whose reply is not to arrive."""
        self.stranded = False
        self._client_messages = Messages(of_client=True)
        self._server_messages = Messages(of_client=False)

    async def run(self) -> None:
        await self.proxy._speaking.wait()
        try:
            self.server = await self.proxy._connect()
        except OSError:
            self.end(reset=True)
            return
        pumps = [
            asyncio.create_task(self._pump(self.client[0], self.server[1], self._from_client)),
            asyncio.create_task(self._pump(self.server[0], self.client[1], self._from_server)),
        ]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        self.end(reset=False)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, look: Callable[[bytes], bytes]
    ) -> None:
        proxy = self.proxy
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                pause = proxy.delay_s + (len(data) / proxy.bytes_per_s if proxy.bytes_per_s else 0.0)
                if pause:
                    await asyncio.sleep(pause)
                await proxy._speaking.wait()
                if not self.stranded and (passed := look(data)):
                    writer.write(passed)
                    await writer.drain()

    def _from_client(self, data: bytes) -> bytes:
        for kind, content in self._client_messages.feed(data):
            if kind == b"P":
                name, text, _ = content.split(b"\0", 2)
                self.texts[name] = text
            elif kind == b"B":
                _, name, _ = content.split(b"\0", 2)
                self.bound = self.texts.get(name, b"")
            elif kind in (b"E", b"Q"):
                text = self.bound if kind == b"E" else content.rstrip(b"\0")
                if self.proxy._statement(text):
                    self.swallows = text
        return data

    def _from_server(self, data: bytes) -> bytes:
        """Passes whole messages on, so that some can be left out."""
        messages = self._server_messages.feed(data)
        if self.swallows is not None:
            if any(kind in _REPLY_ENDS for kind, _ in messages):
                # the statement has been carried out, and committed unless it is part of a transaction
                self.proxy.dropped += 1
                self.proxy.swallowed[self.swallows.decode()] += 1
                self.end(reset=True)
            return b""
        if self.proxy._deaf:
            heard = [message for message in messages if message[0] != _NOTIFICATION]
            self.proxy.unheard += len(messages) - len(heard)
            messages = heard
        return b"".join([kind + struct.pack("!i", len(content) + 4) + content for kind, content in messages])

    def end(self, *, reset: bool) -> None:
        for _, writer in filter(None, (self.client, self.server)):
            if reset:
                found: socket.socket = writer.get_extra_info("socket")
                if found.family != socket.AF_UNIX:
                    with suppress(OSError):
                        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            else:
                writer.close()


class Proxy:
    """The road described above, to the server of `dsn`; `proxy.dsn` leads over it.

    Attributes:
        delay_s, bytes_per_s: may be set at any time; 0 is none.
        statements: how many have passed, of all connections.
        dropped: how many replies were swallowed.
        swallowed: the same for each statement, by its text as it was sent.
        accepted: how many connections have come.
        unheard: how many notifications were left out.
    """

    def __init__(self, dsn: str) -> None:
        self._target = {name: str(value) for name, value in conninfo_to_dict(dsn).items() if value is not None}
        self.delay_s = 0.0
        self.bytes_per_s = 0.0
        self.statements = 0
        self.dropped = 0
        self.swallowed: Counter[str] = Counter()
        self.accepted = 0
        self.unheard = 0
        self.port = 0
        self._deaf = False
        self._drops: list[tuple[int, bytes]] = []
        self._watched: list[tuple[bytes, Callable[[], None]]] = []
        self._links: set[_Link] = set()
        self._loop = asyncio.new_event_loop()
        self._speaking = asyncio.Event()
        self._speaking.set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    @property
    def dsn(self) -> str:
        """Leads to the same database, over this road."""
        return make_conninfo(
            "", **self._target | {"host": "127.0.0.1", "port": self.port, "sslmode": "disable", "gssencmode": "disable"}
        )

    def start(self) -> Proxy:
        self._thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        return self

    def stop(self) -> None:
        """Ends every connection and stops listening."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)

    def silence(self) -> None:
        """Nothing passes from now on, in either direction; new connections are accepted, and hear nothing."""
        self._loop.call_soon_threadsafe(self._speaking.clear)

    def speak(self) -> None:
        """What was held up passes, and everything after it."""
        self._loop.call_soon_threadsafe(self._speaking.set)

    def strand(self) -> None:
        """The connections that there are become half-open for good: both ends may send, and neither is heard.

        Not for `watch`: it returns when that is so.
        """

        async def strand() -> None:
            for link in self._links:
                link.stranded = True

        asyncio.run_coroutine_threadsafe(strand(), self._loop).result(10)

    def deaf(self) -> None:
        """Notifications do not pass from now on."""
        self._deaf = True

    def hear(self) -> None:
        """Notifications pass again; those that were left out are lost."""
        self._deaf = False

    def cut(self, *, reset: bool) -> None:
        """Ends every connection."""

        def end() -> None:
            for link in list(self._links):
                link.end(reset=reset)

        self._loop.call_soon_threadsafe(end)

    def drop_reply(self, nth: int = 1, containing: str = "") -> None:
        """Swallows the reply of the nth statement from now, of those whose text has `containing` in it."""
        self._loop.call_soon_threadsafe(self._drops.append, (nth, containing.encode()))

    def watch(self, containing: str, act: Callable[[], None]) -> None:
        """Calls `act`, on the proxy's thread, before a statement with this text passes on."""
        self._loop.call_soon_threadsafe(self._watched.append, (containing.encode(), act))

    def heal(self) -> None:
        """As at the beginning; connections stay."""
        self.delay_s = self.bytes_per_s = 0.0
        self._loop.call_soon_threadsafe(self._drops.clear)
        self._loop.call_soon_threadsafe(self._watched.clear)
        self.speak()
        self.hear()

    def _statement(self, text: bytes) -> bool:
        """Counts a statement; whether its reply is to be swallowed."""
        self.statements += 1
        for containing, act in self._watched:
            if containing in text:
                act()
        swallow, left = False, []
        for nth, containing in self._drops:
            if containing in text:
                nth -= 1
            if nth:
                left.append((nth, containing))
            else:
                swallow = True
        self._drops[:] = left
        return swallow

    async def _listen(self) -> int:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        link = _Link(self, reader, writer)
        self._links.add(link)
        try:
            await link.run()
        except asyncio.CancelledError:
            link.end(reset=True)  # the proxy stops; the stream's own callback would report a cancellation as an error
        finally:
            self._links.discard(link)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = self._target.get("host", "127.0.0.1"), self._target.get("port", "5432")
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(host, int(port))

    async def _close(self) -> None:
        self._server.close()
        for link in list(self._links):
            link.end(reset=True)
        others: list[asyncio.Task[Any]] = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


@pytest.fixture
def new_proxy() -> Iterator[Callable[[str], Proxy]]:
    """`new_proxy(dsn)` gives a Proxy to that server, which ends with the test."""
    made: list[Proxy] = []

    def make(dsn: str) -> Proxy:
        made.append(Proxy(dsn).start())
        return made[-1]

    yield make
    for proxy in made:
        proxy.stop()
