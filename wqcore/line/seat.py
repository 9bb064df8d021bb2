"""A seat is one place where one job at a time runs: what is known of the run, and why it was cancelled if it was.

A seat is also what the job that runs on it asks (`job.RunSide`), from the event loop or from a thread: it leads there
to whoever owns the shard. It outlives its jobs. What a crash leaves of it is its line on the worker's sheet of the board.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import psycopg

from wqcore.job import Job
from wqcore.line.voice import Kept, Voice

TIMEOUT, SHUTDOWN, LEASE, CANCELLED, GONE = "time-out", "shutdown", "lease", "cancel", "gone"
"""Why a run was cancelled. CANCELLED: somebody asked for it. GONE: the job is not ours any more, so it has no outcome."""


class Sheet(Protocol):
    """A worker's part of the board, as far as the executor writes it."""

    def started(self, seat: int, job_id: int, attempt: int, kind: int, began: float) -> None: ...
    def finished(self, seat: int, job_id: int, attempt: int) -> None: ...


class Owner(Protocol):
    """Who owns the shard: what a running job asks of it, on the event loop."""

    def complete_tx(self, job: Job, conn: Any) -> Coroutine[Any, Any, None]: ...
    def progress(self, job_id: int, fraction: float, note: str | None) -> None: ...


class Seat:
    """One place where one job at a time runs."""

    __slots__ = (
        "_halted", "_loop", "_owner", "_thread", "began", "cancelled_at", "deadline", "idle", "index", "job", "lines",
        "reason", "row", "stuck", "task", "voice", "why",
    )  # fmt: skip

    def __init__(self, index: int, owner: Owner, halted: Callable[[], bool]) -> None:
        self.index = index
        self.task: asyncio.Task[None] | None = None
        self.row: tuple[Any, ...] | None = None
        self.job: Job | None = None
        self.began = 0.0
        self.deadline = 0.0
        self.idle: asyncio.Future[None] | None = None
        self.why: str | None = None
        self.reason = ""
        self.cancelled_at = 0.0
        self.stuck = False
        self.voice: Voice | None = None
        """What is heard of the running job; None where the log's own level decides."""
        self.lines: Kept | None = None
        """What the running job has logged and keeps; made at the first line."""
        self._owner = owner
        self._halted = halted
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0

    def stand_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """The running loop, on whose thread the owner is asked."""
        self._loop, self._thread = loop, threading.get_ident()

    def runs(self, job: Job) -> bool:
        """Whether this run of the job has not ended yet. May be asked from any thread."""
        return self.row is job._row

    # --- what a running job asks ------------------------------------------------------------------------------------

    def stopping(self, job: Job) -> bool:
        """Whether this run should end. May be asked from any thread."""
        return self.row is not job._row or self.why is not None or self._halted()

    def progress(self, job_id: int, fraction: float, note: str | None) -> None:
        """Passes on how far the job is."""
        if threading.get_ident() == self._thread or self._loop is None:
            self._owner.progress(job_id, fraction, note)
        else:
            self._loop.call_soon_threadsafe(self._owner.progress, job_id, fraction, note)

    def complete_tx(self, job: Job, conn: Any) -> Coroutine[Any, Any, None] | None:
        """Completes the job on the caller's connection: awaited on the loop, at once in a thread."""
        if threading.get_ident() == self._thread:
            if isinstance(conn, psycopg.Connection):
                raise TypeError(
                    "complete_tx on the event loop needs a psycopg.AsyncConnection, because a psycopg.Connection would "
                    "block it; use that one in a `def` handler"
                )
            return self._owner.complete_tx(job, conn)
        if not isinstance(conn, psycopg.Connection):
            raise TypeError(f"complete_tx in a thread needs a psycopg.Connection, not {type(conn).__name__}")
        try:
            self._owner.complete_tx(job, _AtOnce(conn)).send(None)
        except StopIteration:
            return None
        raise AssertionError("complete_tx waits for something else than its connection")


class _AtOnce:
    """A connection of a thread whose awaitables are done when they are made: so one `complete_tx` serves both."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self._conn = conn

    async def execute(self, query: Any, params: Any, *, prepare: bool | None = None) -> _AtOnceCursor:
        return _AtOnceCursor(self._conn.execute(query, params, prepare=prepare))


class _AtOnceCursor:
    def __init__(self, cursor: psycopg.Cursor[Any]) -> None:
        self._cursor = cursor

    async def fetchone(self) -> Any:
        return self._cursor.fetchone()
