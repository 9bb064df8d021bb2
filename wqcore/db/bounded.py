"""Connections of which no call waits for ever: one that hears nothing for `reply_timeout_s` ends, and so does its connection.

The server's `statement_timeout` and the kernel's `tcp_user_timeout` see a dead network and a slow statement, but not a
half-open connection whose other end (a proxy, a frozen server) still acknowledges what it is sent. So the client has a
clock of its own, which begins anew with each call that waits. It is read when psycopg looks for signals, every 0.1 s.

Cancelling the call instead, as `asyncio.timeout` does, makes psycopg ask the server to cancel the statement, on another
connection, and then wait for its end: ten more seconds where nobody answers (psycopg 3.3; without end before).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen

from wqcore import clock

T = TypeVar("T")

REPLY_GRACE_S = 2.0
"""How much longer than the server's own statement_timeout we wait for a reply."""


class NoReply(psycopg.OperationalError):
    """Nothing was heard for the time allowed; whether the statement was carried out is unknown."""


class Road:
    """What the connections of one pool have in common: how long a reply may take, and why the last connection failed."""

    def __init__(self, statement_timeout_s: float) -> None:
        self.reply_timeout_s = statement_timeout_s + REPLY_GRACE_S
        self.refused: Exception | None = None


class _Bounded:
    reply_timeout_s = math.inf
    heard_at = 0.0
    """When its server last answered."""

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Another limit for the calls in the block."""
        before, self.reply_timeout_s = self.reply_timeout_s, seconds
        try:
            yield
        finally:
            self.reply_timeout_s = before


class BoundedAsyncConnection(psycopg.AsyncConnection[Any], _Bounded):
    """A connection for asyncio."""

    @classmethod
    async def connect(  # type: ignore[override]  # psycopg's keywords are passed on as they are
        cls, conninfo: str = "", *, road: Road | None = None, **keywords: Any
    ) -> BoundedAsyncConnection:
        try:
            conn = await super().connect(conninfo, **keywords)
        except Exception as error:  # whatever it was, a pool tells its clients nothing of it
            if road is not None:
                road.refused = error
            raise
        if road is not None:
            road.refused, conn.reply_timeout_s = None, road.reply_timeout_s
        return conn

    async def wait(self, gen: PQGen[T], *args: Any, **keywords: Any) -> T:
        try:
            answer = await super().wait(_until(gen, self.reply_timeout_s), *args, **keywords)
        except NoReply:
            self.pgconn.finish()
            raise
        self.heard_at = clock.monotonic()
        return answer


class BoundedConnection(psycopg.Connection[Any], _Bounded):
    """A connection for code without an event loop."""

    @classmethod
    def connect(  # type: ignore[override]  # psycopg's keywords are passed on as they are
        cls, conninfo: str = "", *, road: Road | None = None, **keywords: Any
    ) -> BoundedConnection:
        try:
            conn = super().connect(conninfo, **keywords)
        except Exception as error:  # as above
            if road is not None:
                road.refused = error
            raise
        if road is not None:
            road.refused, conn.reply_timeout_s = None, road.reply_timeout_s
        return conn

    def wait(self, gen: PQGen[T], *args: Any, **keywords: Any) -> T:
        try:
            answer = super().wait(_until(gen, self.reply_timeout_s), *args, **keywords)
        except NoReply:
            self.pgconn.finish()
            raise
        self.heard_at = clock.monotonic()
        return answer


def _until(gen: PQGen[T], seconds: float) -> PQGen[T]:
    """The same steps as those of `gen`, until nothing has come for so long."""
    end = clock.monotonic() + seconds
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if not ready and clock.monotonic() >= end:  # not ready: psycopg's look for signals
                raise NoReply(
                    f"no reply within {seconds:g} s, so the connection was closed: look for a frozen server, a proxy that "
                    "has lost it, or a network that drops packets"
                )
            wanted = gen.send(ready)
    except StopIteration as last:
        return last.value  # type: ignore[no-any-return]  # StopIteration does not know what its generator returns
