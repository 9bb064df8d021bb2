"""Shares cover all slots and permits whoever takes them, and nothing that a job needs is given up."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wqcore.line.lanes import Lanes
from wqcore.line.shares import Fair, Shares, fair_share, surplus_permits
from wqcore.line.turn import Look, Protocol
from wqcore.line.waiting import Waiting
from wqcore.settings import Limits, Logging

COUNTS = st.integers(1, 64)


@given(slots=COUNTS, shards=COUNTS, total=st.none() | COUNTS)
def test_the_shares_of_all_shards_cover_all_slots_and_permits(slots: int, shards: int, total: int | None) -> None:
    fair = fair_share(slots, shards, total, permitted=True)
    permitted = shards if total is None else min(shards, total)
    assert slots <= fair.slots * permitted < slots + permitted
    assert (fair.permits == 0) if total is None else (total <= fair.permits * shards < total + shards)


def test_with_fewer_permits_than_shards_those_without_one_leave_their_slots_to_the_others() -> None:
    assert fair_share(12, 4, 3, permitted=True) == Fair(slots=4, permits=1)
    assert fair_share(12, 4, 3, permitted=False) == Fair(slots=0, permits=1)


def test_without_a_limit_no_permit_is_needed_to_own_slots() -> None:
    assert fair_share(12, 4, None, permitted=False) == Fair(slots=3, permits=0)


def test_a_look_that_shows_no_shard_yet_counts_this_one() -> None:
    assert fair_share(12, 0, None, permitted=False) == Fair(slots=12, permits=0)


def test_permits_that_are_to_vanish_are_given_up_before_those_over_the_share() -> None:
    assert surplus_permits([0, 1, 2, 7, 8], fair=2, total=5, idle=5) == [7, 8, 2]
    assert surplus_permits([0, 1, 2, 7, 8], fair=2, total=5, idle=2) == [7, 8]


def test_without_a_limit_any_longer_all_permits_are_surplus() -> None:
    assert surplus_permits([0, 1, 2], fair=0, total=0, idle=3) == [0, 1, 2]


@given(
    permits=st.lists(st.integers(0, 20), unique=True),
    fair=st.integers(0, 20),
    total=st.integers(0, 20),
    busy=st.integers(0, 30),
)
def test_only_permits_that_no_job_needs_are_surplus(permits: list[int], fair: int, total: int, busy: int) -> None:
    surplus = surplus_permits(permits, fair, total, idle=len(permits) - busy)
    assert len(set(surplus)) == len(surplus)
    assert set(surplus) <= set(permits)
    left = [permit for permit in permits if permit not in surplus]
    assert len(left) >= min(busy, len(permits))
    if not busy:
        assert len(left) <= fair
        assert all(permit < total for permit in left)


class Table:
    """The slots of one shard as the table has them; another one still holds job 7 in slot 2. Replies can be lost."""

    def __init__(self, *owned: int, free: tuple[int, ...] = ()) -> None:
        self.owned = list(owned)
        self.free = list(free)
        self.lost = ""

    async def owned_slots(self) -> list[int]:
        return list(self.owned)

    async def take_slots(self, count: int) -> list[int]:
        self.owned, self.free = sorted(self.owned + self.free[:count]), self.free[count:]
        return list(self.owned)

    async def release_slots(self, slots: list[int]) -> None:
        self.owned = [slot for slot in self.owned if slot not in slots]

    async def held_elsewhere(self, slots: list[int]) -> list[tuple[int, int, str | None]]:
        if self.lost == "held_elsewhere":
            raise TimeoutError
        return [(7, 2, "key")] if 2 in slots else []


LOOK = Look(True, 2, 2, 0, 0, 0, False, None, None, False, 1, 0, 1, 1, False, False, False, None, None, None, 0)


def shares_of(table: Table) -> tuple[Shares, Lanes]:
    lanes = Lanes({1})
    waiting = Waiting("q", lambda: None, Logging())
    return Shares(cast(Protocol, table), lanes, waiting, slots=4, limits=Limits()), lanes


async def share(shares: Shares, fair: int) -> bool:
    async def write_the_claim() -> None: ...

    return await shares.share_slots(fair, cast(Any, LOOK), write_the_claim)


async def test_no_job_is_read_in_a_taken_slot_before_it_is_known_what_its_last_owner_still_runs() -> None:
    """The reply was lost after the slots were taken; on the next connection the table says that they are ours."""
    table = Table(free=(2, 3))
    shares, lanes = shares_of(table)
    table.lost = "held_elsewhere"
    with pytest.raises(TimeoutError):
        await share(shares, 2)
    assert (table.owned, lanes.slots, shares.elsewhere) == ([2, 3], [], {})
    table.lost = ""
    assert await share(shares, 2)
    assert (lanes.slots, shares.elsewhere) == ([2, 3], {7: (2, "key")})


async def test_slots_whose_taking_nobody_had_confirmed_are_no_exception_when_some_are_given_up() -> None:
    shares, lanes = shares_of(Table(1, 2, 3))
    assert await share(shares, 2)
    assert (lanes.slots, shares.elsewhere) == ([1, 2], {7: (2, "key")})


async def test_slots_whose_taking_came_true_late_are_released() -> None:
    """The first taking was given up by its client, which took others on a new connection; then the server did both."""
    table = Table(free=(0, 1))
    shares, lanes = shares_of(table)
    table.owned = []
    take = table.take_slots

    async def late(count: int) -> list[int]:
        table.owned = [2, 3]
        return await take(count)

    table.take_slots = late  # type: ignore[method-assign]
    assert await share(shares, 2)
    assert (lanes.slots, table.owned) == ([0, 1], [0, 1])


def test_a_look_that_shows_other_slots_than_those_we_read_is_unfair() -> None:
    shares, lanes = shares_of(Table())
    lanes.set_slots([0, 1])
    assert not shares.unfair(LOOK._replace(own_slots=2))
    assert shares.unfair(LOOK._replace(own_slots=4))
