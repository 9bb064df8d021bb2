"""A run of a job takes a place in its queue, is executed by calls to its endpoint, and gives the place back exactly once.

startRun takes the place (or leaves the run QUEUED, or waiting for connections) and makes the first execution, all in one
statement; performRunExecution is `executions.py`; runFinished and startQueuedRuns let the next runs of the queue start.
A crash before a statement leaves the job to be repeated, after it the repetition changes nothing. Executions whose job is
gone are found by sweepExecutions, every 20 s. A run cannot be left PENDING without a startRun: they are made together.
"""

from __future__ import annotations

import logging
from typing import Final

import msgspec

import wqcore
from handlers import executions, ids, ingest, store

logger = logging.getLogger(__name__)

STARTED_TOGETHER_MAX: Final = 10
"""As many as the queue has workers."""
FINISHED_TOGETHER_MAX: Final = 20
BATCH_WAIT_S: Final = 0.005
EVENTS_MAX: Final = 1000
"""Events that one output may carry."""


@wqcore.kind("startRun", queue="executions", max_attempts=13, timeout_s=600)
class StartRun(msgspec.Struct, frozen=True, rename="camel"):
    """Starts a run, or leaves it queued or waiting for connections.

    Attributes:
        id (str): the run.
    """

    id: str


@wqcore.kind("performRunExecution", queue="run-executions", serial_key="runs-{id}", max_attempts=1, timeout_s=1800)
class PerformRunExecution(msgspec.Struct, frozen=True, rename="camel"):
    """Performs one execution of a run by a call to its endpoint.

    Attributes:
        id (str): the execution (not the run).
    """

    id: str


@wqcore.kind("runFinished", queue="default", max_attempts=3, timeout_s=60)
class RunFinished(msgspec.Struct, frozen=True, rename="camel"):
    """Does what follows the end of a run.

    Attributes:
        id (str): the run.
    """

    id: str


@wqcore.kind("startQueuedRuns", queue="queue-operations", serial_key="queue-{id}", max_attempts=3, timeout_s=300)
class StartQueuedRuns(msgspec.Struct, frozen=True, rename="camel"):
    """Starts the queued runs of a job queue while it has places.

    Attributes:
        id (str): the job queue.
    """

    id: str


@wqcore.kind("sweepExecutions", queue="default", max_attempts=1, timeout_s=60)
class SweepExecutions(msgspec.Struct, frozen=True):
    """Has executions performed again that died with their worker."""


wqcore.recurring(
    "sweepExecutions", SweepExecutions(), every_s=20, job_key="sweepExecutions", job_key_mode="unsafe_dedupe"
)


@wqcore.handler(max_batch=STARTED_TOGETHER_MAX, max_wait_s=BATCH_WAIT_S)
async def start_runs(items: list[wqcore.BatchItem[StartRun]]) -> list[Exception | None]:
    """Starts the runs for which their queues have a place. A run that does not exist is wqcore.Discard."""
    db = await store.open_store()
    started = await _start(db, [item.args.id for item in items])
    missing = [row.id for row in started if row.is_missing]
    for run in missing:
        await db.row("wait_for_connections", run=run, missing=ids.new("missing"))
    if missing:
        await _start(db, missing)  # a connection that was made meanwhile has not seen them wait
    known = {row.id for row in started}
    return [None if item.args.id in known else wqcore.Discard(f"no run {item.args.id}") for item in items]


@wqcore.handler
async def start_queued_runs(args: StartQueuedRuns, job: wqcore.Job) -> None:
    """Enqueues startRun for the oldest queued runs, as many as the queue has places."""
    db = await store.open_store()
    await db.rows("start_queued_runs", queue=args.id)


@wqcore.handler
async def perform_run_execution(args: PerformRunExecution, job: wqcore.Job) -> None:
    """Performs the execution; whatever comes of it is written in the run, so the job itself completes."""
    await executions.perform(args.id, job.id)


@wqcore.handler(max_batch=FINISHED_TOGETHER_MAX, max_wait_s=BATCH_WAIT_S)
async def runs_finished(items: list[wqcore.BatchItem[RunFinished]]) -> list[Exception | None]:
    """Lets the next runs of the queues start, and ingests the events that the outputs carry.

    A run that does not exist, or has not ended, is wqcore.Discard.
    """
    db = await store.open_store()
    ended = await db.rows("runs_finished", runs=[item.args.id for item in items])
    for run in ended:
        if run.events:
            await ingest.ingest(db, run.environment_id, _events(run))
    known = {run.id for run in ended}
    return [
        None if item.args.id in known else wqcore.Discard(f"no run {item.args.id} that has ended") for item in items
    ]


@wqcore.handler
async def sweep_executions(args: SweepExecutions, job: wqcore.Job) -> None:
    """Finds executions whose job is gone, and queues that nobody wakes."""
    swept = await executions.sweep()
    if swept:
        logger.info("%d executions had lost their job", swept)


async def _start(db: store.Store, runs: list[str]) -> list[store.Row]:
    return await db.rows("start_runs", runs=runs, executions=[ids.new("exe") for _ in runs])


def _events(run: store.Row) -> list[ingest.Event]:
    """The events in the output of `run`; what is not an event is left out. An id is `<run>:<n>` unless given."""
    found = []
    for n, item in enumerate(run.events[:EVENTS_MAX]):
        try:
            raw = msgspec.convert(item, ingest.RawEvent)
        except msgspec.ValidationError as error:
            logger.warning("run %s: item %d of its output's events is no event: %s", run.id, n, error)
            continue
        found.append(raw.event(f"{run.id}:{n}", account_id=run.account_id))
    return found
