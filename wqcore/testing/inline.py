"""Runs one job inside the caller's transaction: inserted, run and settled there, so that a rollback undoes it all.

Protocol, all on the caller's connection: insert the job; take a shard's lease that nobody else can see before the
commit; run the handler on a seat of the real executor, inside a savepoint; write its outcome with the worker's own
statements; give the lease up. A handler that leaves the transaction failed is rolled back to the savepoint, and its
error is the outcome.

Nothing of it is visible outside before the caller commits; a crash leaves nothing.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Unpack

import msgspec
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from wqcore import clock
from wqcore.catalog import Catalog, Kind
from wqcore.catalog import catalog as default_catalog
from wqcore.db import wake
from wqcore.db.connect import AsyncConnection
from wqcore.db.request import Query, Request
from wqcore.db.statements import Statements
from wqcore.errors import InsertError, LeaseLost, WqcoreError
from wqcore.job import Job, JobState, Row
from wqcore.line.execute import Executor
from wqcore.line.insert import (
    NO_OPTIONS,
    Inserted,
    Inserter,
    InsertOptions,
    KeyedJob,
    Options,
    columns_of,
    seen_by,
    with_keywords,
)
from wqcore.line.settle import Ended, Outcomes
from wqcore.line.turn import Protocol
from wqcore.proc.board import Board
from wqcore.settings import Insert, Logging
from wqcore.testing.ask import ask

REPLY_TIMEOUT_S = 30.0
CANCEL_GRACE_S = 5.0


class Ran(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a run.

    Attributes:
        id (int): the job's id.
        state (JobState): completed, cancelled, discarded, retryable (failed, runs again) or scheduled (snoozed).
        output (any): what the handler gave to `job.output`, as decoded from JSON.
        error (str | None): the message of the error or the reason of the outcome.
        error_class (str | None): the class of the exception that the handler raised.
        delay_s (float | None): seconds until it runs again, when it does.
    """

    id: int
    state: JobState
    output: Any = None
    error: str | None = None
    error_class: str | None = None
    delay_s: float | None = None


async def run_inline(
    conn: AsyncConnection,
    args: msgspec.Struct,
    options: InsertOptions = NO_OPTIONS,
    *,
    schema: str = "wqcore",
    catalog: Catalog = default_catalog,
    **keywords: Unpack[Options],
) -> Ran:
    """Inserts a job in the open transaction of `conn`, runs its handler there and then, and writes its outcome.

    Roll the transaction back and nothing has happened; commit it and the job has its history, or waits for its retry.
    The handler runs with its time-out; `job.complete_tx(conn)` works with this connection only. `run_at` and limits of
    the queue are not waited for. What the handler writes through other connections is not undone.

    Args:
        conn: an asyncio connection in a transaction (`async with conn.transaction():`), or without autocommit.
        args, options, keywords: as for `Client.insert`.

    Raises as `Client.insert` does, InsertError when such a unique job exists already, LeaseLost when the handler calls
    `complete_tx` on another connection, WqcoreError when there is no transaction or the handler ended it.
    """
    if conn.autocommit and conn.info.transaction_status == TransactionStatus.IDLE:
        raise WqcoreError("run_inline needs an open transaction: call it inside `async with conn.transaction():`")
    kind = catalog.kind_of(args)
    chosen = seen_by(catalog.insert_middleware, kind, args, with_keywords(options, keywords))
    inserted, queue = await ask(conn, _insert(kind, args, chosen), schema)
    if inserted.skipped:
        raise InsertError(
            f"job {inserted} exists already, so nothing was inserted and nothing is run; choose other args or keys"
        )
    return await _Inline(conn, catalog, kind, queue, schema).run(inserted)


def _insert(kind: Kind, args: msgspec.Struct, options: InsertOptions) -> Request[tuple[Inserted, str]]:
    slots: dict[str, int] = dict((yield Query("queues")))
    row = Inserter(slots, Insert().args_bytes_max).row(kind, args, options)
    if isinstance(row, KeyedJob):
        [(_, job_id, what)] = yield Query("insert_keyed", columns_of([row], [None]))
        return Inserted(job_id, what), row.job.queue
    [(job_id, _)] = yield Query("insert_one", row._asdict() | {"channel": None, "payload": ""})
    return Inserted(job_id), row.queue


class _Inline:
    """One run, and what its job may ask."""

    def __init__(self, conn: AsyncConnection, catalog: Catalog, kind: Kind, queue: str, schema: str) -> None:
        self._conn = conn
        self._kind = kind
        self._schema = schema
        self._misplaced: LeaseLost | None = None
        self._ended = asyncio.Event()
        self._protocol = Protocol(
            Statements(schema),
            shard=clock.new_shard_id(),
            queue=queue,
            channel=wake.channel(schema, queue),
            reply_timeout_s=REPLY_TIMEOUT_S,
        )
        self._protocol.conn = conn
        self._executor = Executor(
            queue=queue,
            workers=1,
            catalog=catalog,
            sheet=Board([1]).sheets[0],
            run_side=self,
            on_change=self._ended.set,
            cancel_grace_s=CANCEL_GRACE_S,
            log_settings=Logging(),
        )

    async def run(self, job_id: int) -> Ran:
        [row] = await ask(self._conn, _read(job_id), self._schema)
        async with self._tuples():
            await self._protocol.register(str(uuid.uuid4()))
        await self._conn.execute("savepoint wqcore_inline")
        await self._execute(row)
        status = self._conn.info.transaction_status
        if status == TransactionStatus.IDLE:
            raise WqcoreError(
                f"the handler of {self._kind.name} has committed or rolled back the transaction of run_inline; give it "
                "a connection of its own, or use `async with conn.transaction():` in it"
            )
        back = "rollback to savepoint" if status == TransactionStatus.INERROR else "release savepoint"
        await self._conn.execute(f"{back} wqcore_inline".encode())
        if self._misplaced is not None:
            raise self._misplaced
        outcomes = self._executor.outcomes
        async with self._tuples():
            await self._settle(outcomes)
            await self._protocol.leave()
        return _ran(job_id, outcomes)

    async def _execute(self, row: tuple[Any, ...]) -> None:
        """Runs the handler on the only seat."""
        executor = self._executor
        # the transaction's own time, which is also that of its statements
        executor.seconds_since = lambda us: (row[Row.CREATED_AT] - us) / 1e6
        executor.start()
        try:
            executor.add([row])
            while executor.waiting or executor.running:
                await self._ended.wait()
                self._ended.clear()
        finally:
            await executor.close()

    async def _settle(self, outcomes: Outcomes) -> None:
        """Writes the outcome; completed jobs too, so that one statement decides by the queue's retention."""
        done = [
            Ended(row[Row.ID], row[Row.REVISION], began, "completed", None)
            for row, began in zip(outcomes.done, outcomes.done_began, strict=True)
        ]
        await self._protocol.end(done + outcomes.ended)
        await self._protocol.retry(outcomes.again)

    @asynccontextmanager
    async def _tuples(self) -> AsyncIterator[None]:
        """The protocol reads rows by position, whatever the caller's row factory is."""
        factory, self._conn.row_factory = self._conn.row_factory, tuple_row
        try:
            yield
        finally:
            self._conn.row_factory = factory

    async def complete_tx(self, job: Job, conn: AsyncConnection) -> None:
        """Completes the job in the caller's transaction; another connection cannot see the job."""
        if conn is not self._conn:
            self._misplaced = LeaseLost(
                f"job {job.id} runs inline in another connection's transaction, so complete_tx cannot complete it on "
                "this one: give the handler the connection that run_inline was given"
            )
            raise self._misplaced
        row = job._row
        ago_us = self._executor.running_us(job.id)
        done = await self._protocol.complete_tx(
            conn, job_id=row[Row.ID], revision=row[Row.REVISION], ago_us=ago_us, output=job._output
        )
        if not done:
            raise LeaseLost(f"job {job.id} was changed or deleted while it ran")

    def progress(self, job_id: int, fraction: float, note: str | None) -> None:
        """Nobody could read it before the commit, when the job has ended."""


def _read(job_id: int) -> Request[list[tuple[Any, ...]]]:
    return (yield Query("inline_job", {"id": job_id}))


def _ran(job_id: int, outcomes: Outcomes) -> Ran:
    if outcomes.again:
        item = outcomes.again[0]
        state = JobState.SCHEDULED if item.error is None else JobState.RETRYABLE
        return Ran(id=job_id, state=state, delay_s=item.delay_s, **_error(item.error))
    if outcomes.ended:
        ended = outcomes.ended[0]
        output = None if ended.output is None else msgspec.json.decode(ended.output)
        return Ran(id=job_id, state=JobState(ended.outcome), output=output, **_error(ended.error))
    if not outcomes.done:
        raise LeaseLost(f"the run of job {job_id} ended without an outcome")
    return Ran(id=job_id, state=JobState.COMPLETED)


def _error(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    entry = msgspec.json.decode(text)
    return {"error": entry["error"], "error_class": entry.get("class")}
