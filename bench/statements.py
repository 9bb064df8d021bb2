"""Counts what a client asks of PostgreSQL: every frontend message and every byte that passes, none of them changed.

    with counted(dsn) as counter:
        subprocess.run(…, env={"BENCH_DSN": counter.dsn})
        print(counter.statements, counter.bytes_sent)

A proxy listens on a Unix socket in a temporary folder, in front of the server's, and serves from a thread of its own. A
message is counted before it is passed on: what the server has answered is in the counts. It costs each message a hop, so a
run that is counted is not timed. Requests for encryption are answered with no, as the server does on a Unix socket; a
client that insists on it fails. The clients are other processes, or at least let other threads run while they wait (psycopg's
`cancel` does not and hangs; its `cancel_safe` does). When the block ends, the connections that are still open are closed.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote, urlencode

from psycopg.conninfo import conninfo_to_dict

SOCKET = ".s.PGSQL.5432"
CHUNK_BYTES = 1 << 16
CANCEL_REQUEST = 80877102
ENCRYPTION_REQUESTS = (80877103, 80877104)  # SSL, GSSAPI
STARTUP_BYTES_MAX = 10_000  # PostgreSQL's own limit


class Counts:
    """What has passed so far, over all connections; to be read at any time, from any thread."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        """The DSN that leads through the proxy."""
        self.connections = 0
        self.messages: Counter[str] = Counter()
        """Frontend messages by their type byte: `Q` query, `P` parse, `B` bind, `E` execute, `S` sync, `d` copy data, …"""
        self.bytes_sent = 0
        """From the clients to the server."""
        self.bytes_received = 0
        """From the server to the clients."""

    @property
    def statements(self) -> int:
        """Statements that were run: simple queries (one may hold several statements) and executions of prepared ones."""
        return self.messages["Q"] + self.messages["E"]

    @property
    def syncs(self) -> int:
        """Ends of an extended-protocol exchange, for each of which a client usually waits."""
        return self.messages["S"]


class Messages:
    """Finds the messages in a client's stream after its start-up packet, however the stream is cut into chunks."""

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts
        self._header = bytearray()
        self._body_bytes = 0

    def feed(self, chunk: bytes) -> None:
        """Counts the messages whose header ends in this chunk."""
        at = 0
        while at < len(chunk):
            if self._body_bytes:
                step = min(self._body_bytes, len(chunk) - at)
                self._body_bytes -= step
                at += step
                continue
            part = chunk[at : at + 5 - len(self._header)]
            self._header += part
            at += len(part)
            if len(self._header) == 5:
                self._body_bytes = int.from_bytes(self._header[1:]) - 4  # a length counts itself, but not the type
                if self._body_bytes < 0:
                    raise ValueError(f"not a frontend message: {bytes(self._header)!r}")
                self._counts[chr(self._header[0])] += 1
                self._header.clear()


class Proxy:
    """The listening socket and its connections, all in one event loop."""

    def __init__(self, counts: Counts, listen: Path, server: str) -> None:
        self._counts = counts
        self._listen = listen
        self._server = server
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        self._ready = threading.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="counting proxy", daemon=True)

    def start(self) -> None:
        """Returns when it listens."""
        self._thread.start()
        self._ready.wait()
        if self.error:
            raise self.error

    def stop(self) -> None:
        """Closes all connections; raises what went wrong in one of them, for then the counts are wrong."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopped.set)
            self._thread.join()
        if self.error:
            raise self.error

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except Exception as error:  # whatever it is, it is raised again in the thread that asked
            self.error = error
        finally:
            self._loop.close()
            self._ready.set()

    async def _serve(self) -> None:
        server = await asyncio.start_unix_server(self._accepted, self._listen)
        self._ready.set()
        await self._stopped.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._connection(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and self.error is None:
            self.error = error

    async def _connection(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        try:
            try:
                startup = await self._startup(client, to_client)
            except (ConnectionError, asyncio.IncompleteReadError):
                return  # it went away again; libpq's pg_isready does
            server, to_server = await asyncio.open_unix_connection(self._server)
            try:
                to_server.write(startup)
                await self._session(client, to_client, server, to_server)
            finally:
                to_server.close()
        finally:
            to_client.close()

    async def _startup(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> bytes:
        """The packet with which the client begins a session or cancels a statement."""
        while True:
            head = await client.readexactly(8)
            length, code = int.from_bytes(head[:4]), int.from_bytes(head[4:])
            if not 8 <= length <= STARTUP_BYTES_MAX:
                raise ValueError(f"not a start-up packet: {head!r}")
            packet = head + await client.readexactly(length - 8)
            self._counts.bytes_sent += length
            if code not in ENCRYPTION_REQUESTS:
                self._counts.connections += code != CANCEL_REQUEST
                return packet
            to_client.write(b"N")
            self._counts.bytes_received += 1

    async def _session(
        self,
        client: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
        server: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
    ) -> None:
        """Passes on both directions until the server ends the session: after the client's end it still runs what it was sent."""
        sending = asyncio.create_task(self._send(client, to_server))
        try:
            while chunk := await server.read(CHUNK_BYTES):
                self._counts.bytes_received += len(chunk)
                to_client.write(chunk)
                await to_client.drain()
        except ConnectionError:
            pass  # a client or a server that was killed is no error of the proxy
        finally:
            sending.cancel()
            (ended,) = await asyncio.gather(sending, return_exceptions=True)
        if isinstance(ended, Exception) and not isinstance(ended, ConnectionError):
            raise ended

    async def _send(self, client: asyncio.StreamReader, to_server: asyncio.StreamWriter) -> None:
        messages = Messages(self._counts.messages)
        try:
            while chunk := await client.read(CHUNK_BYTES):
                messages.feed(chunk)
                self._counts.bytes_sent += len(chunk)
                to_server.write(chunk)
                await to_server.drain()
        finally:
            # However this ends, the server must see an end, for it is the server's end that ends the session.
            with suppress(OSError):
                to_server.write_eof()


@contextmanager
def counted(dsn: str) -> Iterator[Counts]:
    """Counts what goes through `counter.dsn`, which leads to the server and database of `dsn`, until the block ends."""
    with tempfile.TemporaryDirectory(prefix="counted-") as folder:
        through, server = _through(dsn, folder)
        counts = Counts(through)
        proxy = Proxy(counts, Path(folder) / SOCKET, server)
        proxy.start()
        try:
            yield counts
        finally:
            proxy.stop()


def _through(dsn: str, folder: str) -> tuple[str, str]:
    """The DSN, as a URI, over a socket in `folder` instead, and the path of the server's own socket."""
    parts = {name: str(value) for name, value in conninfo_to_dict(dsn).items() if value is not None}
    host = parts.pop("host", "")
    if not host.startswith("/"):
        raise ValueError(f"statements are counted over a Unix socket: the DSN must say host=/folder, not {host!r}")
    server = f"{host}/.s.PGSQL.{parts.pop('port', '5432')}"
    user, password, name = (quote(parts.pop(part, ""), safe="") for part in ("user", "password", "dbname"))
    login = f"{user}:{password}@" if user else ""
    return f"postgresql://{login}/{name}?{urlencode(parts | {'host': folder}, safe='/')}", server
