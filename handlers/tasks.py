"""A task that the platform performs for a run."""

from __future__ import annotations

import msgspec

import wqcore


@wqcore.kind("performTaskOperation", queue="task-operations", serial_key="tasks-{id}", max_attempts=3, timeout_s=300)
class PerformTaskOperation(msgspec.Struct, frozen=True, rename="camel"):
    """Performs a task's operation (`fetch`), then lets its run resume.

    Attributes:
        id (str): the task.
    """

    id: str
