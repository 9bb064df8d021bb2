"""Whatever the order in which transactions commit, no visible job is skipped for ever and no held one comes twice."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from wqcore.job import Row
from wqcore.line.lanes import DUE_SLACK_US, Lanes

SLOTS, PRIORITIES = (0, 1), (1, 5)


def row(id_: int, slot: int = 0, priority: int = 1, run_at: int | None = None) -> tuple[Any, ...]:
    columns: list[Any] = [None] * 13
    columns[Row.ID], columns[Row.SLOT], columns[Row.PRIORITY], columns[Row.RUN_AT] = id_, slot, priority, run_at
    return tuple(columns)


class World:
    """The table, its transactions, and one shard that reads it as turn.sql and peek.sql do."""

    def __init__(self) -> None:
        self.lanes = Lanes(PRIORITIES)
        self.lanes.set_slots(SLOTS)
        self.next_xid = 10
        self.sequence = 0
        self.open: dict[int, list[tuple[Any, ...]]] = {}
        self.visible: dict[int, tuple[Any, ...]] = {}
        self.held: dict[int, tuple[Any, ...]] = {}
        self.done: set[int] = set()

    def begin(self) -> None:
        self.open[self.next_xid] = []
        self.next_xid += 1

    def insert(self, which: int, slot: int, priority: int) -> None:
        if self.open:
            self.sequence += 1
            self.open[sorted(self.open)[which % len(self.open)]].append(row(self.sequence, slot, priority))

    def end(self, which: int, commit: bool) -> None:
        if self.open:
            rows = self.open.pop(sorted(self.open)[which % len(self.open)])
            if commit:
                self.visible.update((each[Row.ID], each) for each in rows)

    def turn(self, limit: int) -> bool:
        slots, priorities, after = self.lanes.plan()
        found: list[tuple[Any, ...]] = []
        for slot, priority, cursor in zip(slots, priorities, after, strict=True):
            lane = [
                each for id_, each in sorted(self.visible.items())
                if each[Row.SLOT] == slot and each[Row.PRIORITY] == priority and id_ > cursor and id_ not in self.held
            ]
            found += lane[:limit]
        found = found[:limit]
        assert not {each[Row.ID] for each in found} & (self.held.keys() | self.done)
        more = self.lanes.took(found, limit)
        self.held.update((each[Row.ID], each) for each in found)
        return more or self.lanes.behind()

    def finish(self) -> None:
        self.done |= self.held.keys()
        for id_ in self.held:
            del self.visible[id_]
        self.held.clear()

    def look(self) -> bool:
        lanes = self.lanes
        slots, priorities, after = lanes.plan()
        ready = late = False
        for slot, priority, cursor in zip(slots, priorities, after, strict=True):
            for id_, each in self.visible.items():
                if (each[Row.SLOT], each[Row.PRIORITY]) == (slot, priority) and id_ not in self.held:
                    ready |= id_ > cursor
                    late |= lanes.floor < id_ <= cursor
        lanes.look(self.sequence, min(self.open, default=self.next_xid), self.next_xid, late=late)
        return ready or late


steps = st.one_of(
    st.tuples(st.just("begin")),
    st.tuples(st.just("insert"), st.integers(0, 5), st.sampled_from(SLOTS), st.sampled_from(PRIORITIES)),
    st.tuples(st.just("end"), st.integers(0, 5), st.booleans()),
    st.tuples(st.just("turn"), st.integers(1, 4)),
    st.tuples(st.just("look")),
    st.tuples(st.just("finish")),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(steps, max_size=60))
def test_no_visible_job_is_skipped_and_none_is_claimed_twice(plan: list[tuple[Any, ...]]) -> None:
    world = World()
    for name, *params in plan:
        getattr(world, name)(*params)
    while world.open:
        world.end(0, True)
    for _ in range(20):
        while world.turn(3):
            pass
        world.finish()
        if not world.look() and not world.visible:
            break
    assert world.visible == {}, f"skipped with the floor at {world.lanes.floor}"


def test_a_late_commit_sends_the_lanes_back_to_the_floor_until_they_have_caught_up() -> None:
    lanes = Lanes([1])
    lanes.set_slots([0])
    lanes.plan()
    lanes.took([row(5), row(9)], 2)
    lanes.look(9, 7, 8, late=True)
    assert lanes.plan() == ([0], [1], [0])
    assert lanes.behind()
    assert not lanes.took([row(3)], 2)
    assert not lanes.behind()
    assert lanes.plan() == ([0], [1], [9])


def test_the_floor_moves_only_after_all_transactions_of_its_time_have_ended() -> None:
    lanes = Lanes([1])
    lanes.look(100, 20, 30, late=False)
    lanes.took([], 1)
    lanes.look(120, 20, 40, late=False)
    lanes.look(130, 39, 50, late=False)
    assert lanes.floor == 0
    lanes.look(140, 40, 60, late=False)
    assert lanes.floor == 100


def test_the_floor_does_not_move_by_looks_alone_because_their_snapshots_end_at_the_newest_completed_xid() -> None:
    lanes = Lanes([1])
    for look in range(5):
        lanes.look(100 + look, 50, 50, late=False)
    assert lanes.floor == 0


def test_a_lane_that_was_sent_back_is_not_forgotten_when_a_limit_stops_it() -> None:
    lanes = Lanes([5, 1])
    lanes.set_slots([0])
    lanes.plan()
    lanes.took([row(8, priority=5), row(9)], 10)
    lanes.rewind_slot(0)
    lanes.plan()
    assert lanes.took([row(2, priority=5)], 1)
    assert lanes.behind()
    assert dict(zip(*lanes.plan()[1:], strict=True)) == {5: 2, 1: 0}


def test_due_jobs_go_on_where_they_were_and_begin_anew_when_told() -> None:
    lanes = Lanes([1])
    lanes.set_slots([0, 1])

    def cursors() -> dict[int, tuple[int, int]]:
        slots = lanes.plan()[0]
        return dict(zip(slots, zip(*lanes.due_cursors(), strict=True), strict=True))

    first = cursors()[0]
    lanes.took([row(4, run_at=1000), row(2, run_at=2000)], 10)
    assert cursors() == {0: (2000, 2), 1: first}
    lanes.rewind_due([0, 1])
    assert lanes.behind()
    assert cursors() == {0: first, 1: first}
    lanes.took([row(3, run_at=1500)], 10)
    assert (lanes.behind(), cursors()[0]) == (False, (2000, 2))


def due_cursors(lanes: Lanes) -> dict[int, tuple[int, int]]:
    slots = lanes.plan()[0]
    return dict(zip(slots, zip(*lanes.due_cursors(), strict=True), strict=True))


def test_a_due_lane_that_was_read_to_its_end_goes_on_from_the_time_of_the_last_look() -> None:
    lanes = Lanes([1])
    lanes.set_slots([0, 1])
    lanes.look(1, 10, 10, late=False, now_us=5000)
    due_cursors(lanes)
    lanes.took([row(4, run_at=6000)], 10)
    assert due_cursors(lanes) == {0: (6000, 4), 1: (5000, 0)}
    lanes.rewind_due_to(4500)
    assert lanes.behind()
    assert due_cursors(lanes) == {0: (4500, 0), 1: (4500, 0)}
    lanes.took([row(9, slot=1, run_at=4500)], 10)
    assert not lanes.behind()
    assert due_cursors(lanes) == {0: (6000, 4), 1: (5000, 0)}


def test_a_due_lane_behind_a_limit_stays_where_it_was() -> None:
    lanes = Lanes([1])
    lanes.set_slots([0, 1])
    lanes.look(1, 10, 10, late=False, now_us=5000)
    first, second = due_cursors(lanes)
    lanes.took([row(4, slot=first, run_at=100)], 1)
    at = due_cursors(lanes)
    assert at[first] == (100, 4)
    assert at[second] < (0, 0)


def test_the_floor_of_due_jobs_waits_for_every_transaction_that_could_write_below_it() -> None:
    lanes = Lanes([1])
    lanes.set_slots([0])
    unset, second = lanes.due_floor_us, 1_000_000

    def look(at_s: int, oldest_xid: int, next_xid: int) -> int:
        lanes.look(1, oldest_xid, next_xid, late=False, now_us=at_s * second)
        lanes.plan()
        lanes.took([], 10)
        return lanes.due_floor_us

    assert [look(100, 10, 10), look(110, 10, 12), look(120, 11, 14)] == [unset] * 3  # 11 is open since before 110
    assert look(130, 14, 15) == 110 * second - DUE_SLACK_US
    lanes.connected(another=False)
    assert lanes.due_floor_us == unset


def test_due_jobs_of_a_higher_priority_are_read_first() -> None:
    lanes = Lanes([1, 5])
    lanes.set_slots([0])
    assert lanes.plan()[1] == [5, 1]
    lanes.took([row(7, 0, 5, run_at=3000), row(8, 0, 1, run_at=10)], 2)
    lanes.plan()
    assert lanes.due_cursors() == ([3000, 10], [7, 8])


def test_a_lane_whose_oldest_job_has_waited_is_read_earlier() -> None:
    lanes = Lanes([1, 5])
    lanes.set_slots([0])
    lanes.age([(0, 1, 49.0), (0, 5, 0.0)], 10.0)
    assert lanes.plan()[1] == [5, 1]
    lanes.age([(0, 1, 51.0), (0, 5, 0.0)], 10.0)
    assert lanes.plan()[1] == [1, 5]


def test_gaps_cover_every_priority_that_has_no_lane() -> None:
    lanes = Lanes([1, 5])
    covered = [
        priority for above, below in zip(*lanes.gaps(), strict=True)
        for priority in range(-1000, 1001) if above < priority < below
    ]
    assert sorted([*covered, 1, 5]) == list(range(-1000, 1001))


def test_a_lost_slot_is_forgotten_and_begins_at_its_head_when_it_comes_back() -> None:
    lanes = Lanes([1])
    lanes.set_slots([0])
    lanes.plan()
    lanes.took([row(9)], 5)
    lanes.set_slots([])
    lanes.set_slots([0])
    assert lanes.plan() == ([0], [1], [0])


def test_a_slot_that_comes_back_while_a_job_of_it_still_runs_is_read_past_that_job() -> None:
    lanes = Lanes({1})
    lanes.set_slots([0])
    lanes.plan()
    running, due = row(7), row(8, run_at=500)
    lanes.took([running, due], limit=1)
    lanes.set_slots([])
    lanes.set_slots([0])
    assert not lanes.behind()
    lanes.read_past([running, due])
    assert lanes.behind()
    lanes.plan()
    assert lanes.took([row(3), row(4, run_at=100)], limit=1)
    assert lanes.behind()
    lanes.plan()
    assert not lanes.took([], limit=1)
    assert not lanes.behind()
    assert lanes.plan()[2] == [7]


def test_a_slot_that_is_lost_again_leaves_nothing_behind() -> None:
    lanes = Lanes({1})
    lanes.set_slots([0])
    lanes.read_past([row(7), row(8, run_at=500), row(9, slot=5), row(6, priority=900)])
    assert lanes.behind()
    lanes.set_slots([])
    assert not lanes.behind()


def test_a_lane_without_a_job_goes_on_from_the_floor() -> None:
    """A new owner of a slot walked, in each turn, over all that had been in a lane, when nothing came there any more."""
    lanes = Lanes([5, 1])
    lanes.set_slots([0])
    lanes.plan()
    lanes.took([row(7)], 2)
    for sequence, xid in ((100, 20), (120, 40), (140, 60)):
        lanes.look(sequence, xid - 1, xid, late=False)
        lanes.plan()
        lanes.took([], 2)
    assert lanes.floor == 100
    assert lanes.plan() == ([0, 0], [5, 1], [100, 100])


def test_a_lane_that_a_limit_has_stopped_does_not_go_on_from_the_floor() -> None:
    lanes = Lanes([5, 1])
    lanes.set_slots([0])
    for sequence, xid in ((100, 20), (120, 40), (140, 60)):
        lanes.look(sequence, xid - 1, xid, late=False)
        lanes.plan()
        lanes.took([row(sequence // 20, priority=5)], 1)
    assert lanes.floor == 100
    assert lanes.plan() == ([0, 0], [5, 1], [7, 0])


def test_a_server_that_draws_known_ids_once_more_is_read_from_its_head() -> None:
    """A standby was promoted that had not got all: its new jobs have ids that our cursors are beyond."""
    lanes = Lanes([1])
    lanes.set_slots([0])
    for sequence, xid in ((100, 20), (120, 40), (140, 60)):
        lanes.look(sequence, xid - 1, xid, late=False)
        lanes.plan()
        lanes.took([row(sequence)], 2)
    assert (lanes.floor, lanes.plan()) == (100, ([0], [1], [140]))
    lanes.connected(another=True)
    assert lanes.floor == 0, "so that the look finds what is behind the cursor"
    lanes.look(90, 5, 6, late=True)
    assert lanes.plan() == ([0], [1], [0])
    assert lanes.behind()
