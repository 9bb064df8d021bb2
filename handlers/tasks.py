"""A task that the platform performs for a run: it ends once, and its end lets the run go on.

begin_operation.sql, the request, then one transaction: the task completed or failed and a new execution of its run, or
the next attempt planned with a job of its own. A crash before that repeats the request; after it the repetition finds
the task ended, or its next attempt planned for later.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec
import psycopg

import wqcore
from handlers import executions, fetching, ids, store


@wqcore.kind("performTaskOperation", queue="task-operations", serial_key="tasks-{id}", max_attempts=3, timeout_s=300)
class PerformTaskOperation(msgspec.Struct, frozen=True, rename="camel"):
    """Performs a task's operation (`fetch`), then lets its run resume.

    Attributes:
        id (str): the task.
    """

    id: str


@wqcore.handler
async def perform_task_operation(args: PerformTaskOperation, job: wqcore.Job) -> None:
    """Performs the operation, and writes what came of it in the task.

    Raises:
        wqcore.Retry: there was no answer, and this was not the job's last attempt; at the last one the task fails.
        wqcore.Discard: there is no such task.
    """
    db = await store.open_store()
    task = await db.row("begin_operation", task=args.id)
    if task is None:
        raise wqcore.Discard(f"no task {args.id}")
    if not task.is_open:
        return
    try:
        outcome = await _perform(task)
    except wqcore.Retry as silence:
        if job.attempt < job.max_attempts:
            raise
        outcome = fetching.Failed({"message": str(silence)}, str(silence))
    try:
        await _write(db, args.id, task.run_id, outcome)
    except psycopg.DataError as error:  # a NUL or a lone surrogate in the body, which jsonb does not take
        reason = f"the answer cannot be stored: {error.diag.message_primary}"
        await _write(db, args.id, task.run_id, fetching.Failed({"message": reason}, reason))


async def _perform(task: store.Row) -> fetching.Done | fetching.Failed | fetching.Later:
    match task.operation:
        case "fetch" | "fetch-response":
            whole_response = task.operation == "fetch-response"
            return await fetching.perform(task.params, task.attempts, whole_response=whole_response)
        case other:
            error = f"the operation {other!r} is not supported"
            return fetching.Failed({"message": error}, error)


async def _write(
    db: store.Store, task: str, run: str, outcome: fetching.Done | fetching.Failed | fetching.Later
) -> None:
    async with db.transaction() as tx:
        if isinstance(outcome, fetching.Later):
            await _try_later(tx, task, run, outcome.at, outcome.error)
        elif isinstance(outcome, fetching.Failed):
            await _settle(tx, task, run, "ERRORED", outcome.output, outcome.error)
        else:
            await _settle(tx, task, run, "COMPLETED", outcome.output, None)


async def _settle(tx: store.Transaction, task: str, run: str, status: str, output: Any, error: str | None) -> None:
    settled = await tx.row(
        "settle_task", task=task, run=run, status=status, output=msgspec.json.encode(output).decode(), error=error,
        properties=None,
    )  # fmt: skip
    if settled is not None:
        await executions.add(tx, run)


async def _try_later(tx: store.Transaction, task: str, run: str, at: dt.datetime, error: str) -> None:
    if await tx.row("retry_task", task=task, run=run, error=error, run_at=at, attempt=ids.new("att")) is not None:
        await tx.enqueue(PerformTaskOperation(task), run_at=at)
