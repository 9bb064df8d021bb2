"""A run of a job takes a place in its queue, is executed by calls to its endpoint, and gives the place back exactly once.

startRun takes the place (or leaves the run QUEUED, or waiting for connections) and makes the first execution, all in one
statement; performRunExecution is `executions.py`; runFinished and startQueuedRuns let the next runs of the queue start.
A crash before a statement leaves the job to be repeated, after it the repetition changes nothing. Executions whose job is
gone are found by sweepExecutions, every 20 s. A run cannot be left PENDING without a startRun: they are made together.
"""

from __future__ import annotations

import datetime as dt
import logging
from typing import Annotated, Any

import msgspec

import wqcore
from handlers import executions, ids, ingest, store

logger = logging.getLogger(__name__)

Instant = Annotated[dt.datetime, msgspec.Meta(tz=True)]
EVENTS_MAX = 1000
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


class RawEvent(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """An event in the output of a run, as the SDK's users write it."""

    name: str
    payload: Any = None
    id: str | None = None
    context: Any = None
    source: str = "trigger.dev"
    timestamp: Instant | None = None


@wqcore.handler
async def start_run(args: StartRun, job: wqcore.Job) -> None:
    """Starts the run if its queue has a place. Raises wqcore.Discard when there is no such run."""
    db = await store.open_store()
    started = await _start(db, args.id)
    if started.is_missing:
        await db.row("wait_for_connections", run=args.id, missing=ids.new("missing"))
        await _start(db, args.id)  # a connection that was made meanwhile has not seen the run wait


@wqcore.handler
async def start_queued_runs(args: StartQueuedRuns, job: wqcore.Job) -> None:
    """Enqueues startRun for the oldest queued runs, as many as the queue has places."""
    db = await store.open_store()
    await db.rows("start_queued_runs", queue=args.id)


@wqcore.handler
async def perform_run_execution(args: PerformRunExecution, job: wqcore.Job) -> None:
    """Performs the execution; whatever comes of it is written in the run, so the job itself completes."""
    await executions.perform(args.id, job.id)


@wqcore.handler
async def run_finished(args: RunFinished, job: wqcore.Job) -> None:
    """Lets the next run of the queue start, and ingests the events that the output carries.

    Raises wqcore.Discard when there is no such run, or it has not ended.
    """
    db = await store.open_store()
    run = await db.row("run_finished", run=args.id)
    if run is None:
        raise wqcore.Discard(f"no run {args.id} that has ended")
    if run.events:
        await ingest.ingest(db, run.environment_id, _events(run))


@wqcore.handler
async def sweep_executions(args: SweepExecutions, job: wqcore.Job) -> None:
    """Finds executions whose job is gone, and queues that nobody wakes."""
    swept = await executions.sweep()
    if swept:
        logger.info("%d executions had lost their job", swept)


async def _start(db: store.Store, run: str) -> store.Row:
    started = await db.row("start_run", run=run, execution=ids.new("exe"))
    if started is None:
        raise wqcore.Discard(f"no run {run}")
    return started


def _events(run: store.Row) -> list[ingest.Event]:
    """The events in the output of `run`; what is not an event is left out. An id is `<run>:<n>` unless given."""
    found = []
    for n, item in enumerate(run.events[:EVENTS_MAX]):
        try:
            event = msgspec.convert(item, RawEvent)
        except msgspec.ValidationError as error:
            logger.warning("run %s: item %d of its output's events is no event: %s", run.id, n, error)
            continue
        event_id = event.id or f"{run.id}:{n}"
        given = {name: getattr(event, name) for name in ("name", "payload", "context", "source", "timestamp")}
        found.append(ingest.Event(id=event_id, account_id=run.account_id, **given))
    return found
