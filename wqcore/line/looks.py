"""A shard looks at least every poll interval, and no more than a share of its time, however slow a look has become.

A look also proves the lease, so even a long one is never spaced out so far that the lease could seem unproven. A hint
brings the next look forward. Pure but for its jitter; a crash leaves nothing of it.
"""

from __future__ import annotations

from collections import deque

from wqcore import clock

LOOK_SHARE = 0.05
"""A look may take this share of the time; beside an old snapshot a long one is spaced out accordingly."""
WHOLE_EVERY_S = 30.0
WHOLE_BYTES_MAX = 128 * 1024
"""While the index of rows with a time is at most this large, every look reads all of it: it has no more than some thousand
entries. Beside an old snapshot it grows with every retry and delayed job, and a look would walk over all of them."""
HINT_SHARE = 0.1
"""The same for looks that a hint asked for: with 0.05 jobs that became due one each 20 ms started up to 40 ms late."""


class Looks:
    """When one shard looks next."""

    def __init__(self, *, poll_interval_s: float, dead_after_s: float) -> None:
        self.at = 0.0
        self._interval_s = min(poll_interval_s, dead_after_s / 3)
        self._spaced_max_s = dead_after_s / 2
        self._looked_at = 0.0
        self._took: deque[float] = deque([0.0], maxlen=4)
        self._due_bytes = 0
        self._whole_at = 0.0

    def looked(self, began: float, now: float) -> None:
        """Takes in a look that has ended now."""
        took = now - began
        self._looked_at = now
        self._took.append(took)
        # spaced out when it is long, but never so far that the lease could seem unproven
        self.at = now + clock.jittered(min(max(self._interval_s, took / LOOK_SHARE), self._spaced_max_s))

    def whole(self, now: float) -> bool:
        """Whether a look that begins now reads all rows with a time."""
        return self._due_bytes <= WHOLE_BYTES_MAX or now >= self._whole_at

    def whole_next(self) -> None:
        """A job has got a time that is long past."""
        self._whole_at = 0.0

    def saw(self, due_bytes: int, now: float, *, whole: bool) -> None:
        """Takes in how large the index of rows with a time is."""
        self._due_bytes = due_bytes
        if whole:
            self._whole_at = now + clock.jittered(WHOLE_EVERY_S)

    def at_once(self) -> None:
        """Looks next, however long that takes."""
        self.at = 0.0

    def soon(self, at: float) -> None:
        """Looks at that time, or later when looks take long: hints must not make them most of the work.

        The shortest of the last looks counts, so that a single slow one does not make due jobs late.
        """
        self.at = min(self.at, max(at, self._looked_at + min(self._took) / HINT_SHARE))
