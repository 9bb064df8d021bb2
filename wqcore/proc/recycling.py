"""A worker that is too big, too old or has run enough is replaced before it does harm: new before old, one at a time.

    1. due       its own memory, age or jobs are over a limit; the place counts as empty, and the master fills it
    2. relieved  the old one goes on working until the new one has started, however often that takes
    3. leaving   the new one works: the old one gets TERM and drains like any other, but alone; whoever waits for it waits here

Nothing else is recycled meanwhile. A worker that dies on this way is rescued like any other, and its place is filled
already. What the master forgets when it dies is nothing: its workers die with it.
"""

from __future__ import annotations

import logging
import signal
from dataclasses import dataclass

from wqcore.proc.board import WORKING
from wqcore.proc.children import Child, Children, suspended

log = logging.getLogger("wqcore.master")

MEMORY_AGE_MIN_S = 30.0
"""A worker younger than this is not replaced for its memory: a limit below what a worker needs at rest costs a start now
and then, and not one after the other."""


@dataclass(frozen=True)
class Recycling:
    """When a worker is to be replaced; None: never."""

    memory_bytes: int | None = None
    after_s: float | None = None
    after_jobs: int | None = None

    def due(self, *, age_s: float, jobs: int, memory_bytes: int) -> str | None:
        """Why a worker is to be replaced; None when it is not."""
        if self.memory_bytes is not None and memory_bytes > self.memory_bytes and age_s >= MEMORY_AGE_MIN_S:
            return f"holds {memory_bytes >> 20} MB of its own, more than process.memory_soft_mb = {self.memory_bytes >> 20}"
        if self.after_s is not None and age_s >= self.after_s:
            return f"is {age_s:.0f} s old (process.recycle_after_s = {self.after_s:g})"
        if self.after_jobs is not None and jobs >= self.after_jobs:
            return f"has run {jobs} jobs (process.recycle_after_jobs = {self.after_jobs})"
        return None


class Recycler:
    """The one worker that is being replaced, if any.

    Args:
        limits: when a worker is due.
        drain_s: how long one may take to drain before it is killed.
    """

    def __init__(self, limits: Recycling, drain_s: float) -> None:
        self._limits = limits
        self._drain_s = drain_s
        self._old: Child | None = None

    def step(self, children: Children, now: float) -> None:
        """One look at everybody; at most one signal."""
        old = self._old
        if old is None or old.disowned or children.by_pid.get(old.pid) is not old:
            self._old = self._next(children, now)
        elif not old.leaving_at:
            if any(child.place is old.place and self._works(child) for child in children.by_pid.values()):
                log.info("%s (pid %d): its replacement works, so it drains", old.place.name, old.pid)
                old.leaving_at = now
                children.signal(old, signal.SIGTERM)
        elif now - old.leaving_at > self._drain_s and not old.killed_at and not suspended(old.pid):
            old.killed_at, old.why_killed = now, "did not end within the drain's time"
            children.signal(old, signal.SIGKILL)

    def _next(self, children: Children, now: float) -> Child | None:
        for child in children.by_pid.values():
            if child.place.queue is None or not self._works(child):
                continue
            sheet = child.sheet
            why = self._limits.due(
                age_s=now - child.started_at, jobs=sheet.completed + sheet.failed, memory_bytes=sheet.memory_bytes
            )
            if why is not None:
                log.info("%s (pid %d) %s: starting its replacement", child.place.name, child.pid, why)
                child.relieved = True
                return child
        return None

    def _works(self, child: Child) -> bool:
        return child.sheet.state == WORKING and not (child.relieved or child.disowned or child.killed_at)
