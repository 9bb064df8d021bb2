"""A run of a job: it takes a place in its queue, is executed by calls to its endpoint, and gives the place back."""

from __future__ import annotations

import msgspec

import wqcore


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
