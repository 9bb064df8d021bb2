"""One execution of a run: a call to its endpoint, and what the answer makes of the run, written once.

begin_execution.sql, the call, then one write: end_run.sql for a run that ends, a transaction for one that goes on. An
execution belongs to one job, `wq_job_id`: it is STARTED and finished by that job alone, so a worker that was given up
writes nothing. Executions of one run never overlap: their jobs have the serial key `runs-<run>`.

A crash before the call or during it, or a failed write, leaves the execution open while its job (it has one attempt) is
gone: `sweep` finds it and has it performed again. The endpoint is then called twice; the tasks that it completed are in
the second body, and the keys of the others find what the first call made. After the write a repetition finds nothing.
"""

from __future__ import annotations

import datetime as dt
import logging
from functools import lru_cache
from typing import Final

import psycopg

import wqcore
from handlers import calls, ids, protocol, secrets, store

logger = logging.getLogger(__name__)

RETRIES_MAX: Final = 10
"""How often an execution is performed again when its endpoint does not answer, or its worker died; 57 s in all."""
EXECUTIONS_MAX: Final = 500
"""Of one run; a run that yields or waits in an endless loop fails then."""
TASKS_BYTES_MAX: Final = 3_500_000
"""Outputs of completed tasks in one body; trigger.dev's own limit."""
SWEPT_MAX: Final = 1000
On = store.Store | store.Transaction


async def perform(execution: str, job: int) -> None:
    """Performs `execution`, which belongs to the job with the id `job`."""
    db = await store.open_store()
    begun = await db.row("begin_execution", execution=execution, job=job, tasks_bytes_max=TASKS_BYTES_MAX)
    if begun is None:
        return
    endpoint = calls.Endpoint(url=begun.url, api_key=_unsealed(begun.api_key_sealed))
    body = protocol.request_body(begun, _connections(begun.connections or []))
    caller = await calls.caller()
    preprocess = begun.reason == "PREPROCESS"
    try:
        data = await caller.call_raw(endpoint, "PREPROCESS_RUN" if preprocess else "EXECUTE_JOB", body)
        answer: protocol.Preprocessed | protocol.Answer
        answer = protocol.read(data, protocol.preprocess_answer if preprocess else protocol.execution_answer)
    except wqcore.Retry as silence:
        await again(db, execution, job, str(silence))
        return
    except wqcore.Discard as refusal:
        await end(db, protocol.failure(str(refusal)), execution=execution, job=job)
        return
    try:
        await _finish(db, execution, job, answer)
    except psycopg.DataError as error:  # a NUL or a lone surrogate in what users sent, which jsonb does not take
        reason = f"the endpoint's answer cannot be stored: {error.diag.message_primary}"
        await end(db, protocol.failure(reason), execution=execution, job=job)


async def end(
    on: On, how: protocol.End, *, run: str | None = None, execution: str | None = None, job: int | None = None
) -> bool:
    """Ends a run, given itself or by its `execution` and that one's `job`; False when there was nothing to end.

    The place in its queue is given back, its open tasks are canceled, and runFinished is enqueued, all in one statement.
    """
    found = await on.row(
        "end_run", run=run, execution=execution, job=job, status=how.status, output=how.output,
        error=how.error and how.error.replace("\0", "\N{REPLACEMENT CHARACTER}"), failed_task=how.failed_task,
    )  # fmt: skip
    return found is not None


async def again(db: store.Store, execution: str, job: int, reason: str) -> None:
    """Has an execution performed once more, or fails its run when that was tried RETRIES_MAX times."""
    retried = await db.row("retry_execution", execution=execution, job=job, error=reason, retries_max=RETRIES_MAX)
    if retried is None and await end(db, protocol.failure(reason), execution=execution, job=job):
        logger.warning("execution %s failed its run: %s", execution, reason)


async def add(
    tx: store.Transaction,
    run: str,
    *,
    resume_task: str | None = None,
    run_at: dt.datetime | None = None,
    is_retry: bool = False,
) -> None:
    """Makes the next execution of a run that goes on, at `run_at` (None: now), where `resume_task` goes on too.

    A run that has had EXECUTIONS_MAX of them fails.
    """
    added = await tx.row(
        "add_execution", execution=ids.new("exe"), run=run, task=resume_task, run_at=run_at, is_retry=is_retry,
        executions_max=EXECUTIONS_MAX,
    )  # fmt: skip
    if added is None:
        await end(tx, protocol.failure(f"the run was executed {EXECUTIONS_MAX} times without an end"), run=run)


async def sweep() -> int:
    """Finds the executions whose job is gone, and queues that nobody wakes; how many executions."""
    db = await store.open_store()
    stale = await db.rows("stale_executions", executions_max=SWEPT_MAX)
    for found in stale:
        await again(db, found.id, found.wq_job_id, "its worker died or its job failed")
    await db.rows("wake_queues")
    return len(stale)


async def _finish(db: store.Store, execution: str, job: int, answer: protocol.Preprocessed | protocol.Answer) -> None:
    if isinstance(answer, protocol.Ending):
        await end(db, protocol.end_of(answer), execution=execution, job=job)
        return
    if isinstance(answer, protocol.Preprocessed) and answer.abort:
        await end(db, protocol.End(status="ABORTED"), execution=execution, job=job)
        return
    async with db.transaction() as tx:
        finished = await tx.row("finish_execution", execution=execution, job=job)
        if finished is None or not finished.is_open:
            return
        if isinstance(answer, protocol.Preprocessed):
            await tx.rows("preprocessed_run", run=finished.run_id, properties=protocol.text(answer.properties))
            await add(tx, finished.run_id)
        elif isinstance(answer, protocol.ResumeWithParallelTask):
            for child in answer.child_errors:
                if isinstance(child, protocol.Ending):
                    await end(tx, protocol.end_of(child), run=finished.run_id)
                    return
                await _go_on(tx, finished.run_id, child)
        else:
            await _go_on(tx, finished.run_id, answer)


async def _go_on(tx: store.Transaction, run: str, answer: protocol.Answer) -> None:
    """What an answer that does not end the run makes of it."""
    match answer:
        case protocol.ResumeWithTask(task=task):
            waited = await tx.row("waited_task", run=run, task=task.id)
            if waited is None:
                await end(
                    tx, protocol.failure(f"the run waits for the task {task.id}, which it does not have"), run=run
                )
            elif waited.operation is None and task.callback_url is None:
                # a task with an operation or a callback lets the run go on by itself when it ends
                await add(tx, run, resume_task=task.id, run_at=waited.delay_until)
        case protocol.RetryWithTask(task=task, error=error, retry_at=at):
            await tx.row(
                "retry_task", run=run, task=task.id, error=protocol.message_of(error), run_at=at, attempt=ids.new("att")
            )
            await add(tx, run, resume_task=task.id, run_at=at, is_retry=True)
        case protocol.Yield(key=key):
            await tx.rows("yield_run", run=run, key=key)
            await add(tx, run)
        case protocol.AutoYieldWithCompletedTask(id=task_id, output=output, properties=properties):
            await tx.row(
                "settle_task", run=run, task=task_id, status="COMPLETED", output=output or "null", error=None,
                properties=protocol.text(properties),
            )  # fmt: skip
            await add(tx, run)
        case protocol.AutoYieldRateLimit(reset=reset):
            await add(tx, run, run_at=dt.datetime.fromtimestamp(reset / 1000, dt.UTC))
        case _:
            await add(tx, run)


def _connections(rows: list[tuple[str, str, list[str]]]) -> dict[str, protocol.ConnectionBody]:
    return {
        key: protocol.ConnectionBody("oauth2", secrets.unseal(sealed.encode()), scopes) for key, sealed, scopes in rows
    }


@lru_cache(maxsize=1000)
def _unsealed(sealed: bytes) -> str:
    """An environment's key. Each run of it needs the same one, and to decrypt it takes longer than to encode a body."""
    return secrets.unseal(sealed)
