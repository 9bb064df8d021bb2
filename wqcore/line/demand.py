"""A shard fetches as much as its seats will need soon, when there may be something, and no more than it may hold.

Demand is free seats plus as much as runs in `prefetch_s` at the present rate, less what waits already. A shard is
*hungry* while the table may have something for it. A fetch that found nothing is followed by a pause of
`fetch_cooldown_s`, unless lanes are behind: a backlog is never throttled. The time of the next due job ends the pause.

Pure: times and counts are arguments. All of it is memory; a crash leaves nothing of it.
"""

from __future__ import annotations

import math

DUE_ROOM = 16
"""Due jobs that may be claimed beyond the demand, when their time comes while enough others wait already."""
RATE_OVER_S, FIRST_RATE_OVER_S = 0.02, 0.004
"""A rate is taken over this long; the first one, while nothing is prefetched, over less: of a backlog that is met cold three
times as many jobs run in the first 20 ms."""
BUSY_PREFETCH = 100


class Demand:
    """How much one shard would fetch, and when."""

    def __init__(self, *, batch_max: int, prefetch_s: float, cooldown_s: float) -> None:
        self.hungry = True
        self.not_before = 0.0
        self.due_at = math.inf
        """When the next job is due, as far as we know."""
        self.due_now = False
        self.at_most_once = False
        """The last job claimed may run once only: nothing is claimed ahead of the seats then."""
        self._batch_max = batch_max
        self._prefetch_s = prefetch_s
        self._cooldown_s = cooldown_s
        self._prefetch = 0
        self._rate = 0.0
        self._rate_from = (0.0, 0)
        self._parked_before = self._claimed_before = 0

    @property
    def busy(self) -> bool:
        """True while jobs come so fast that waiting a few milliseconds lets many of them share a turn."""
        return self._prefetch >= BUSY_PREFETCH

    def at_once(self) -> None:
        """There is something: the next fetch waits for nothing."""
        self.hungry = True
        self.not_before = 0.0

    def due(self) -> None:
        """A job's time has come."""
        self.due_now = True
        self.at_once()

    def due_by(self, at: float) -> None:
        """A job is due at that time."""
        self.due_at = min(self.due_at, at)

    def target(self, workers: int, running: int, startable: float | None) -> int:
        """How many jobs this shard would like to hold; `startable` may start within a second (None: no rate)."""
        target = workers + self._prefetch
        if startable is not None:
            # what a rate holds back is better left where another shard can take its slot over
            target = min(target, running + math.ceil(startable))
        return target

    def limit(self, target: int, running: int, waiting: int, parked: int, idle_permits: int | None) -> int:
        """How many jobs the next turn may claim; `idle_permits` is None where the queue has no limit over all hosts."""
        room = target - running - waiting
        if self.due_now:
            # a due job must not wait until the low water of jobs that may all be of lower priority
            room = max(room, DUE_ROOM)
        if parked - self._parked_before > self._claimed_before // 2:
            # most of the last batch was parked behind busy keys: look further for jobs that can start
            room = max(room, 2 * self._claimed_before)
        if idle_permits is not None:
            room = min(room, idle_permits)
        return max(0, min(self._batch_max, room))

    def took(self, claimed: int, *, more: bool, behind: bool, parked: int, now: float) -> None:
        """Takes in a fetch: how many it brought, and whether there may be `more`, or lanes are `behind`."""
        self.due_now = False
        self._parked_before, self._claimed_before = parked, claimed
        if claimed:
            self.hungry = more or behind
        else:
            self.hungry = behind
            # spaces fetches that found nothing; a backlog is never throttled
            self.not_before = now + self._cooldown_s if not behind else 0.0

    def measure(self, now: float, completed: int) -> None:
        """Completions per second over the last 20 ms or more, and the prefetch that follows from it."""
        since, before = self._rate_from
        if now - since >= (RATE_OVER_S if self._prefetch else FIRST_RATE_OVER_S):
            rate = (completed - before) / (now - since)
            # up at once, or a backlog would be met with small fetches for a tenth of a second; down slowly
            self._rate = max(rate, 0.7 * self._rate + 0.3 * rate)
            self._rate_from = (now, completed)
            wanted = int(self._rate * self._prefetch_s)
            self._prefetch = 0 if self.at_most_once else min(wanted, 4 * self._batch_max)
