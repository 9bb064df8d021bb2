"""A shard asks for what its seats need soon, never for more than it may hold, and pauses only when nothing is there."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wqcore.line.demand import DUE_ROOM, Demand
from wqcore.line.looks import HINT_SHARE, LOOK_SHARE, Looks

COUNTS = st.integers(0, 300)


def new(batch_max: int = 100) -> Demand:
    return Demand(batch_max=batch_max, prefetch_s=0.5, cooldown_s=0.1)


def empty_seats(demand: Demand, *, waiting: int = 0, parked: int = 0, idle_permits: int | None = None) -> int:
    return demand.limit(demand.target(10, 0, None), 0, waiting, parked, idle_permits)


@given(
    target=COUNTS, running=COUNTS, waiting=COUNTS, parked=COUNTS, idle=st.none() | st.integers(-50, 300),
    due=st.booleans(),
)  # fmt: skip
def test_no_fetch_is_larger_than_a_batch_or_than_the_permits_that_are_idle(
    target: int, running: int, waiting: int, parked: int, idle: int | None, due: bool
) -> None:
    demand = new()
    demand.due_now = due
    limit = demand.limit(target, running, waiting, parked, idle)
    assert 0 <= limit <= 100
    assert idle is None or limit <= max(0, idle)


def test_what_runs_and_waits_is_not_asked_for_again() -> None:
    demand = new()
    assert demand.limit(demand.target(10, 4, None), 4, 0, 0, None) == 6
    assert demand.limit(demand.target(10, 10, None), 10, 5, 0, None) == 0


def test_what_a_rate_holds_back_is_left_in_the_table() -> None:
    assert new().target(10, 3, 1.5) == 5
    assert new().target(10, 3, 0.0) == 3


def test_a_due_job_has_room_beside_others_that_wait_until_it_was_fetched() -> None:
    demand = new()
    demand.due()
    assert empty_seats(demand, waiting=50) == DUE_ROOM
    demand.took(1, more=False, behind=False, parked=0, now=1.0)
    assert empty_seats(demand, waiting=50) == 0


def test_a_batch_that_was_mostly_parked_makes_the_next_one_look_further() -> None:
    demand = new()
    demand.took(20, more=True, behind=False, parked=0, now=1.0)
    assert empty_seats(demand, waiting=10, parked=10) == 0
    assert empty_seats(demand, waiting=10, parked=11) == 40


def test_jobs_that_ran_make_a_prefetch_unless_they_may_run_once_only() -> None:
    demand = new()
    demand.measure(100.0, 0)
    demand.measure(101.0, 60)
    assert demand.target(10, 0, None) == 10 + 30
    demand.at_most_once = True
    demand.measure(102.0, 120)
    assert demand.target(10, 0, None) == 10


def test_a_prefetch_is_four_batches_at_most() -> None:
    demand = new(batch_max=5)
    demand.measure(100.0, 0)
    demand.measure(101.0, 10_000)
    assert demand.target(10, 0, None) == 10 + 4 * 5


def test_a_fetch_that_found_nothing_is_followed_by_a_pause_that_ends_at_a_due_job() -> None:
    demand = new()
    demand.took(0, more=False, behind=False, parked=0, now=1.0)
    assert not demand.hungry
    assert demand.not_before == pytest.approx(1.1)
    demand.due()
    assert demand.hungry
    assert demand.not_before == 0.0


@pytest.mark.parametrize(("claimed", "more"), [(0, False), (3, True), (3, False)])
def test_a_backlog_is_never_throttled(claimed: int, more: bool) -> None:
    demand = new()
    demand.took(claimed, more=more, behind=True, parked=0, now=1.0)
    assert demand.hungry
    assert demand.not_before == 0.0


def test_the_earliest_due_job_counts() -> None:
    demand = new()
    assert demand.due_at == math.inf
    for at in (5.0, 3.0, 4.0):
        demand.due_by(at)
    assert demand.due_at == 3.0


def test_a_long_look_is_spaced_out_but_never_beyond_half_of_what_a_lease_lasts() -> None:
    looks = Looks(poll_interval_s=1.0, dead_after_s=30.0)
    looks.looked(99.99, 100.0)
    assert 100.9 <= looks.at <= 101.1
    looks.looked(100.0, 100.2)
    assert 100.2 + 0.9 * 0.2 / LOOK_SHARE <= looks.at <= 100.2 + 1.1 * 0.2 / LOOK_SHARE
    looks.looked(100.0, 110.0)
    assert looks.at <= 110.0 + 1.1 * 15.0


def test_a_hint_brings_a_look_forward_unless_all_of_the_last_ones_were_long() -> None:
    looks = Looks(poll_interval_s=1.0, dead_after_s=30.0)
    looks.looked(99.0, 99.2)
    looks.soon(0.0)
    assert looks.at == 99.2
    for _ in range(4):
        looks.looked(99.8, 100.0)
    looks.soon(0.0)
    assert looks.at == pytest.approx(100.0 + 0.2 / HINT_SHARE)
