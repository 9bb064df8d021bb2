"""A shard owns its fair share of the queue's slots and permits, and gives up only what none of its jobs needs.

Slots are shared out over the shards that are alive, and so are permits where the queue has a limit over all hosts
(`max_workers_total`). A look shows whether a share is unfair; then, permits first:

    permits    surplus ones that no job needs are released, or free ones taken up to the share
    slots      surplus ones are disowned in memory, what waited in them is given back, and only when a turn has written
               that are they released; or free ones are taken, and we learn which of their jobs others still hold

What a crash leaves: slots and permits in the name of a shard that is dead, which the rescue of its jobs sets free. What
a lost connection leaves: after the disowning, or after the taking and before we knew what others still hold there,
slots that the table says are ours and that nobody reads; the loop shares again on its new connection, and finds them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from wqcore import clock
from wqcore.line.bucket import Bucket
from wqcore.line.lanes import Lanes
from wqcore.line.turn import Look, Protocol
from wqcore.line.waiting import Waiting
from wqcore.settings import Limits


class Fair(NamedTuple):
    """What one shard should own."""

    slots: int
    permits: int


def fair_share(slots: int, shards: int, total: int | None, *, permitted: bool) -> Fair:
    """What each of `shards` should own of `slots` and of `total` permits (None: no limit).

    Where there are fewer permits than shards, some shards get none, and so no slots: the others must read those.
    `permitted`: this one has a permit, or could take one.
    """
    shards = max(1, shards)
    if total is None:
        return Fair(math.ceil(slots / shards), 0)
    if not permitted:
        return Fair(0, math.ceil(total / shards))
    return Fair(math.ceil(slots / min(shards, total)), math.ceil(total / shards))


def surplus_permits(permits: list[int], fair: int, total: int, idle: int) -> list[int]:
    """Permits to give up: those that are to vanish and those over the share, as far as no job needs them (`idle`)."""
    kept = [permit for permit in permits if permit < total]
    surplus = [permit for permit in permits if permit >= total] + kept[fair:]
    return surplus[: max(0, idle)]


class Shares:
    """The slots and permits of one shard, and the limits that follow from them."""

    def __init__(self, protocol: Protocol, lanes: Lanes, waiting: Waiting, *, slots: int, limits: Limits) -> None:
        self.limits = limits
        self.elsewhere: dict[int, tuple[int, str | None]] = {}
        """Jobs in our slots that other shards still hold: id to (slot, serial key)."""
        self._permits: list[int] = []
        self._protocol = protocol
        self._lanes = lanes
        self._waiting = waiting
        self._slots = slots

    def fair(self, look: Look) -> Fair:
        """What this shard should own."""
        return fair_share(
            self._slots,
            look.shards,
            self.limits.max_workers_total,
            permitted=bool(self._permits or look.free_permits),
        )

    def unfair(self, look: Look) -> bool:
        """True when slots or permits are to be taken or given up."""
        fair, own = self.fair(look), len(self._lanes.slots)
        if own != look.own_slots:  # a taking whose connection was lost has come true late: nobody reads those slots
            return True
        if own > fair.slots or (own < fair.slots and look.free_slots):
            return True
        return bool(self._surplus(fair.permits)) or (len(self._permits) < fair.permits and look.free_permits > 0)

    def idle_permits(self) -> int:
        """Permits that no job needs; negative when there are more jobs than permits."""
        waiting = self._waiting
        return len(self._permits) - waiting.running - waiting.waiting - waiting.keys.parked

    def _surplus(self, fair: int) -> list[int]:
        return surplus_permits(self._permits, fair, self.limits.max_workers_total or 0, self.idle_permits())

    async def share_permits(self, fair: int, look: Look) -> bool:
        """Brings the permits to this shard's share; True when it took some."""
        total = self.limits.max_workers_total
        if not look.permits and not self._permits:
            return False
        self._permits = await self._protocol.owned_permits()
        surplus = self._surplus(fair)
        if surplus:
            await self._protocol.release_permits(surplus, total or 0)
            self._permits = [permit for permit in self._permits if permit not in surplus]
        elif total is not None and len(self._permits) < fair and look.free_permits:
            self._permits = await self._protocol.take_permits(fair - len(self._permits), total)
            return True
        return False

    async def share_slots(self, fair: int, look: Look, before_release: Callable[[], Awaitable[None]]) -> bool:
        """Brings the slots to this shard's share; True when it has others now.

        `before_release` must write a claim without the jobs that are given back here.
        """
        own = await self._protocol.owned_slots()
        if len(own) < fair and look.free_slots:
            own = await self._protocol.take_slots(fair - len(own))
        if len(own) > fair:
            surplus = own[fair:]
            # before anybody else can take them: its part of the queue's rate goes with a slot
            self.own([slot for slot in self._lanes.slots if slot in own[:fair]])
            if self._waiting.give_back(set(surplus)) or self._waiting.running:  # their lanes are forgotten
                await before_release()
            await self._protocol.release_slots(surplus)
        if set(own[:fair]) == set(self._lanes.slots):
            return False
        # Before they are ours here: when this is lost, no job of theirs may be read that their last owner still runs.
        held = await self._protocol.held_elsewhere(own[:fair])
        self.own(own[:fair])
        self._leave_out(held)
        return True

    def own(self, slots: list[int]) -> None:
        """These are our slots from now on."""
        self._lanes.set_slots(slots)
        self._waiting.keys.own(slots)
        self._use_limits()

    async def release(self, slots: list[int]) -> None:
        """Gives up slots that were disowned, for good, and permits that no running job needs."""
        await self._protocol.release_slots(slots)
        spare = self._permits[self._waiting.running :]
        if spare:
            await self._protocol.release_permits(spare, self.limits.max_workers_total or 0)

    async def refresh_elsewhere(self) -> bool:
        """Learns which jobs in our slots others still hold; True when some were let go, which are read anew."""
        return self._leave_out(await self._protocol.held_elsewhere(self._lanes.slots))

    def _leave_out(self, found: list[tuple[int, int, str | None]]) -> bool:
        """Takes in what others hold in our slots; True when some was let go."""
        before, self.elsewhere = self.elsewhere, {id_: (slot, key) for id_, slot, key in found}
        self._waiting.held_elsewhere(Counter(key for _, key in self.elsewhere.values() if key is not None))
        let_go = [slot for job_id, (slot, _) in before.items() if job_id not in self.elsewhere]
        for slot in let_go:
            self._lanes.rewind_slot(slot)
        return bool(let_go)

    def limit(self, limits: Limits) -> None:
        """Puts limits in force."""
        self.limits = limits
        self._use_limits()

    def _use_limits(self) -> None:
        """Hands the limits to the executor; the queue's rate is shared out by slots."""
        rate, bucket = self.limits.rate, None
        own = len(self._lanes.slots)
        if rate is not None and own:
            share = own / self._slots
            bucket = Bucket(rate.per_second * share, max(1.0, rate.burst_jobs * share), clock.monotonic())
        self._waiting.set_limits(self.limits, bucket)

    async def sync_permits(self, look: Look) -> bool:
        """Makes the queue's permits as many as its limit; True when they were not, and so are to be shared again."""
        total = self.limits.max_workers_total
        if look.permits < (total or 0) or (look.permits > (total or 0) and look.free_permits):
            await self._protocol.sync_permits(total)
            return True
        return False
