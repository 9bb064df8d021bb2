"""What running jobs say of how far they are costs one statement a second at most, and leaves the table when they end.

A job may say it as often as it likes: the newest word replaces the one before in memory, and one statement writes those
of all jobs, once every `PROGRESS_EVERY_S` at most. After each turn the table forgets the jobs that we do not hold now.

What a crash leaves: rows of jobs that run again, whose next runs overwrite them, and of some that have ended, which the
keeper removes (`forget_orphans.sql`). What a failed write leaves: nothing; its words are lost until the jobs say more.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from wqcore import clock
from wqcore.line.settle import clean
from wqcore.line.turn import Protocol

PROGRESS_EVERY_S = 1.0
FIRST_WAITS_S = 0.01
"""The first word waits this long for others to share its statement."""


class Progress:
    """What the jobs of one shard have said."""

    def __init__(self, protocol: Protocol) -> None:
        self.due_at = math.inf
        """When `write` is to be called; never, while nothing was said."""
        self.written: set[int] = set()
        """Jobs that the table has a word of."""
        self._said: dict[int, tuple[float, str | None]] = {}
        self._not_before = 0.0
        self._protocol = protocol

    def say(self, job_id: int, fraction: float, note: str | None) -> bool:
        """Takes in how far a job is; True when it is the first word, so that somebody must wait for `due_at`."""
        first = not self._said
        if first:
            self.due_at = max(self._not_before, clock.monotonic() + FIRST_WAITS_S)
        # a text that PostgreSQL refuses must not end the shard's connection, which would hold up every other job
        self._said[job_id] = (fraction, None if note is None else clean(note))
        return first

    async def write(self, now: float, held: Collection[int]) -> None:
        """Writes what was said since the last time of jobs that are still held; drops the rest."""
        self._not_before, self.due_at = now + PROGRESS_EVERY_S, math.inf
        held = set(held)
        said, self._said = self._said, {}
        await self._protocol.write_progress(
            [(job_id, *value) for job_id, value in sorted(said.items()) if job_id in held]
        )
        self.written.update(job_id for job_id in said if job_id in held)

    async def forget_ended(self, held: Collection[int]) -> None:
        """Removes from the table what was said of jobs that are not held any more."""
        ended = self.written.difference(held)
        if ended:
            await self._protocol.forget_progress(sorted(ended))
            self.written -= ended
