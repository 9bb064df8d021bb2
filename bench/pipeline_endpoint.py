"""A trivial endpoint for bench/pipeline.py: it answers every call at once, so that only the platform is measured.

One job, `plain`, on the event `bench.run`, that succeeds without a task. A request without an action is answered with how
many were executed. Prints `{"port": …}` when it listens; ends when
its standard input does.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import cast

import httptools
import uvloop

JOB = {
    "id": "plain",
    "name": "Plain",
    "version": "1.0.0",
    "event": {"name": "bench.run", "title": "Bench", "source": "trigger.dev", "icon": "bolt"},
    "trigger": {
        "type": "static",
        "title": "Bench",
        "rule": {"event": "bench.run", "source": "trigger.dev", "payload": {}},
    },
    "integrations": {},
    "enabled": True,
    "startPosition": "latest",
    "preprocessRuns": False,
}
ANSWERS = {
    b"PING": {"ok": True},
    b"INDEX_ENDPOINT": {"jobs": [JOB], "sources": [], "dynamicTriggers": [], "dynamicSchedules": []},
    b"EXECUTE_JOB": {"status": "SUCCESS", "output": {"ok": True}},
}
REPLIES = {
    action: b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    for action, body in ((action, json.dumps(answer).encode()) for action, answer in ANSWERS.items())
}
executed = 0


class Connection(asyncio.Protocol):
    """One connection of the platform, kept open."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is no subclass
        self._parser = httptools.HttpRequestParser(self)
        self._action = b""

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-trigger-action":
            self._action = value

    def on_message_complete(self) -> None:
        global executed
        if self._action == b"EXECUTE_JOB":
            executed += 1
        self._transport.write(REPLIES.get(self._action) or _executed())
        self._action = b""


def _executed() -> bytes:
    """For the sender: how many jobs were executed."""
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%d" % (len(str(executed)), executed)


async def serve() -> None:
    """Serves until SIGTERM or the end of standard input."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, over.set)
    loop.add_reader(sys.stdin.fileno(), lambda: None if os.read(sys.stdin.fileno(), 1) else over.set())
    server = await loop.create_server(Connection, "127.0.0.1", 0)
    sys.stdout.write(json.dumps({"port": server.sockets[0].getsockname()[1]}) + "\n")
    sys.stdout.flush()
    await over.wait()
    server.close()


if __name__ == "__main__":
    uvloop.run(serve())
