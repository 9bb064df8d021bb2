"""The jobs of a campaign. Every run writes its start and its end before anybody can know of them."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from collections.abc import Awaitable, Callable
from functools import cache
from pathlib import Path

import msgspec
import psycopg

import wqcore
from tests.check.history import HANDLERS, Ran
from tests.check.record import Journal
from wqcore.job import Row

FOLDER, DSN = "WQ_CHAOS_FOLDER", "WQ_CHAOS_DSN"
"""Environment: where the history is, and how a handler reaches the database for effects of its own."""
EFFECTS = "create table effect (job bigint not null)"
ATTEMPTS_MAX = 200
"""So many that no fault uses them up: what is discarded was meant to be."""

_numbers = itertools.count(1)


@cache
def _journal() -> Journal:
    return Journal(Path(os.environ[FOLDER]) / HANDLERS)


_runs: dict[int, str] = {}
"""The run of each job that is on a seat, by its claimed row."""


def run_of(job: wqcore.Job) -> str:
    """The name of a run in the history."""
    return _runs[id(job._row)]


def note(run: str, phase: str, how: str | None = None) -> None:
    """Writes a line about a run that has started."""
    _journal().write(Ran(at=time.monotonic_ns(), run=run, phase=phase, how=how))  # type: ignore[arg-type]


@wqcore.work_middleware
async def recorded(job: wqcore.Job, call_next: Callable[[], Awaitable[None]]) -> None:
    """The outermost thing that runs of a job: around threads and batches too."""
    row = job._row
    shard = job._run_side._owner.id  # type: ignore[attr-defined] # what only a test wants to know: whose run this is
    run = _runs[id(row)] = f"{shard}.{next(_numbers)}"
    _journal().write(
        Ran(
            at=time.monotonic_ns(),
            run=run,
            phase="start",
            job=job.id,
            attempt=job.attempt,
            revision=row[Row.REVISION],
            shard=shard,
            pid=os.getpid(),
            kind=job.kind,
            key=job.serial_key,
        )
    )
    how = "ok"
    try:
        await call_next()
    except BaseException as error:
        how = _how(error)
        raise
    finally:
        note(run, "end", how)
        del _runs[id(row)]


def _how(error: BaseException) -> str:
    if isinstance(error, asyncio.CancelledError):
        return "interrupted"
    names = {
        wqcore.Snooze: "snoozed",
        wqcore.LeaseLost: "fenced",
        wqcore.Cancel: "cancelled",
        wqcore.Discard: "discarded",
    }
    return next((how for sort, how in names.items() if isinstance(error, sort)), "failed")


def _soon(attempt: int) -> float:
    return 0.05 + 0.05 * min(attempt, 5)


class Plain(msgspec.Struct):
    token: int
    ms: float = 0.0
    later_ms: float | None = None
    """How long runs after the first take, if they take another time."""
    fails: int = 0
    """Attempts that fail."""


wqcore.kind("plain", max_attempts=ATTEMPTS_MAX, backoff=_soon)(Plain)


@wqcore.handler
async def plain(args: Plain, job: wqcore.Job) -> None:
    again = job.attempt > 1 and args.later_ms is not None
    await asyncio.sleep((args.later_ms if again and args.later_ms is not None else args.ms) / 1000)
    if job.attempt <= args.fails:
        raise ValueError("as it was told")


@wqcore.kind("pulse", max_attempts=ATTEMPTS_MAX, backoff=_soon)
class Pulse(msgspec.Struct):
    """Does nothing and waits for nothing: what it takes from its insert to its start is the queue's own."""

    token: int


@wqcore.handler
async def pulse(args: Pulse) -> None: ...


@wqcore.kind("keyed", serial_key="key-{key}", max_attempts=ATTEMPTS_MAX, backoff=_soon)
class Keyed(msgspec.Struct):
    token: int
    key: int
    ms: float = 0.0
    fails: int = 0


@wqcore.handler
async def keyed(args: Keyed, job: wqcore.Job) -> None:
    await asyncio.sleep(args.ms / 1000)
    if job.attempt <= args.fails:
        raise ValueError("as it was told")


@wqcore.kind("hopeless", max_attempts=2, backoff=_soon)
class Hopeless(msgspec.Struct):
    token: int


@wqcore.handler
async def hopeless(args: Hopeless) -> None:
    if args.token % 3 == 0:
        raise wqcore.Discard("as it was told")
    raise ValueError("as it was told")


@wqcore.kind("dozing", max_attempts=ATTEMPTS_MAX)
class Dozing(msgspec.Struct):
    token: int
    ms: float = 0.0


@wqcore.handler
async def dozing(args: Dozing) -> None:
    await asyncio.sleep(args.ms / 1000)
    if random.random() < 0.6:
        raise wqcore.Snooze(random.uniform(0.0, 0.3))


@wqcore.kind("named", serial_key="name-{name}", max_attempts=ATTEMPTS_MAX, backoff=_soon)
class Named(msgspec.Struct):
    """Inserted with a job key, so that it is replaced while it waits, and at the moment when it is claimed."""

    token: int
    name: int
    ms: float = 0.0


@wqcore.handler
async def named(args: Named) -> None:
    await asyncio.sleep(args.ms / 1000)


@wqcore.kind(
    "once",
    max_attempts=ATTEMPTS_MAX,
    unique=wqcore.Unique(
        args=("token",),
        states=(wqcore.JobState.COMPLETED, wqcore.JobState.CANCELLED, wqcore.JobState.DISCARDED),
    ),
)
class Once(msgspec.Struct):
    token: int
    ms: float = 0.0


@wqcore.handler
async def once(args: Once) -> None:
    await asyncio.sleep(args.ms / 1000)


@wqcore.kind("effect", max_attempts=ATTEMPTS_MAX, backoff=_soon)
class Effect(msgspec.Struct):
    token: int
    ms: float = 0.0


@wqcore.handler
async def effect(args: Effect, job: wqcore.Job) -> None:
    async with await psycopg.AsyncConnection.connect(
        os.environ[DSN], connect_timeout=2, application_name="effect", options="-c statement_timeout=5000"
    ) as conn:
        await conn.execute("insert into effect values (%s)", (job.id,))
        await asyncio.sleep(args.ms / 1000)
        await job.complete_tx(conn)
        note(run_of(job), "commit")


@wqcore.kind("threaded", max_attempts=ATTEMPTS_MAX, backoff=_soon)
class Threaded(msgspec.Struct):
    token: int
    ms: float = 0.0


@wqcore.handler
def threaded(args: Threaded, job: wqcore.Job) -> None:
    run = run_of(job)
    note(run, "body")
    time.sleep(args.ms / 1000)
    note(run, "left")


@wqcore.kind("batched", queue="batches", serial_key="batch-{key}", max_attempts=ATTEMPTS_MAX, backoff=_soon)
class Batched(msgspec.Struct):
    token: int
    key: int
    ms: float = 0.0


@wqcore.handler(max_batch=4, max_wait_s=0.02)
async def batched(items: list[wqcore.BatchItem[Batched]]) -> list[BaseException | None]:
    runs = [run_of(item.job) for item in items]
    for run in runs:
        note(run, "body")
    try:
        await asyncio.sleep(max(item.args.ms for item in items) / 1000)
    finally:
        for run in runs:
            note(run, "left")
    return [
        ValueError("as it was told") if item.job.attempt == 1 and item.args.token % 7 == 0 else None for item in items
    ]


EFFECT_KINDS = ["effect"]
EVERYTHING = (Plain, Pulse, Keyed, Hopeless, Dozing, Named, Once, Effect, Threaded, Batched)
