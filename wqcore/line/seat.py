"""A seat is one place where one job at a time runs: what is known of the run, and why it was cancelled if it was.

A seat outlives its jobs. What a crash leaves of it is its line on the worker's sheet of the board.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

TIMEOUT, SHUTDOWN, LEASE, CANCELLED, GONE = "time-out", "shutdown", "lease", "cancel", "gone"
"""Why a run was cancelled. CANCELLED: somebody asked for it. GONE: the job is not ours any more, so it has no outcome."""


class Sheet(Protocol):
    """A worker's part of the board, as far as the executor writes it."""

    def started(self, seat: int, job_id: int, attempt: int, kind: int, began_ns: int) -> None: ...
    def finished(self, seat: int) -> None: ...


class Seat:
    """One place where one job at a time runs."""

    __slots__ = ("began", "cancelled_at", "deadline", "idle", "index", "reason", "row", "stuck", "task", "why")

    def __init__(self, index: int) -> None:
        self.index = index
        self.task: asyncio.Task[None] | None = None
        self.row: tuple[Any, ...] | None = None
        self.began = 0.0
        self.deadline = 0.0
        self.idle: asyncio.Future[None] | None = None
        self.why: str | None = None
        self.reason = ""
        self.cancelled_at = 0.0
        self.stuck = False
