"""Shares cover all slots and permits whoever takes them, and nothing that a job needs is given up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wqcore.line.shares import Fair, fair_share, surplus_permits

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
