"""Gives `room`: an executor whose kinds are given as handlers by name, with the board's sheet in memory."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest_asyncio

from wqcore.catalog import Catalog, Kind
from wqcore.job import Job
from wqcore.line.execute import Executor
from wqcore.line.traces import Tracing
from wqcore.settings import Logging


class Args(msgspec.Struct):
    n: int = 0


class Sheet:
    """The board's sheet in memory."""

    def __init__(self) -> None:
        self.on_seats: dict[int, int] = {}
        self.order: list[int] = []

    def started(self, seat: int, job_id: int, attempt: int, kind: int, began: float) -> None:
        assert seat not in self.on_seats
        self.on_seats[seat] = job_id
        self.order.append(job_id)

    def finished(self, seat: int, job_id: int, attempt: int) -> None:
        del self.on_seats[seat]


class Side:
    """Whoever runs jobs here cannot complete them in a transaction."""

    def __init__(self) -> None:
        self.said: list[tuple[int, float, str | None, int]] = []

    async def complete_tx(self, job: Job, conn: Any) -> None: ...

    def progress(self, job_id: int, fraction: float, note: str | None) -> None:
        self.said.append((job_id, fraction, note, threading.get_ident()))


class Room:
    """An executor whose kinds are given as handlers by name."""

    def __init__(self) -> None:
        self.catalog = Catalog()
        self.sheet = Sheet()
        self.side = Side()
        self.changed = asyncio.Event()
        self.log_settings = Logging(tasks="all")
        self.tracing: Tracing | None = None
        self.executor: Executor = None  # type: ignore[assignment]

    def kind(self, name: str, handler: Callable[..., Any], timeout_s: float = 60, backoff: Any = lambda n: 7.0,
             aliases: tuple[str, ...] = ()) -> Kind:  # fmt: skip
        args_type = msgspec.defstruct(f"Args_{name}", [], bases=(Args,))
        kind = Kind(
            name, args_type, queue="q", serial_key=None, priority=1, max_attempts=3, timeout_s=timeout_s,
            backoff=backoff, planned=False, aliases=aliases,
        )  # fmt: skip
        self.catalog.declare(kind)
        kind.handler = handler
        return kind

    def start(self, workers: int = 2, cancel_grace_s: float = 5) -> Executor:
        self.executor = Executor(
            queue="q", workers=workers, catalog=self.catalog, sheet=self.sheet, run_side=self.side,
            on_change=self.changed.set, cancel_grace_s=cancel_grace_s, log_settings=self.log_settings,
        )  # fmt: skip
        self.executor.tracing = self.tracing
        self.executor.start()
        return self.executor

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.001)

    async def outcomes(self, count: int) -> Any:
        await self.until(lambda: len(self.executor.outcomes) == count and not self.executor.running)
        assert self.sheet.on_seats == {}
        assert self.executor.held() == []
        return self.executor.outcomes


@pytest_asyncio.fixture
async def room() -> AsyncIterator[Room]:
    room = Room()
    yield room
    await room.executor.close()


def row(id_: int, kind: str = "k", *, priority: int = 1, attempt: int = 0, max_attempts: int = 3, deaths: int = 0,
        key: str | None = None, args: bytes = b"{}") -> tuple[Any, ...]:  # fmt: skip
    return (id_, 0, priority, kind, 0, attempt, max_attempts, deaths, key, None, 0, args, None)
