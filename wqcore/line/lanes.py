"""Where each fetch goes on: a cursor per slot and priority, so that no fetch walks over rows that are gone.

A lane is one slot at one priority, read in the order of ids. What can appear behind its cursor has its way back:

- a job whose transaction committed late. The *floor* is an id below which nothing can appear any more: at a look we
  remember the newest id drawn; then a turn of ours takes an xid, which is newer than that of every transaction that has
  drawn one of those ids (every insert takes its xid before its id); the next look's snapshot has that xid behind it,
  and once everything older than the snapshot's end has ended, all ids up to the remembered one are visible or never
  will be. Without the turn the snapshot proves nothing: its end is one past the newest *completed* xid, and newer
  transactions may be open. A look that finds something between floor and cursor sends the lanes back to the floor.
- a job that this shard gave back or whose revision changed while it ran: its lane goes back to just before it.
- a job that another shard held when we took its slot: its slot's lanes start anew once the other has let go.
- a job that still runs here when its slot, which was handed over, comes back: its lane starts at its head.
- a job whose serial key was busy and that was passed over: its slot goes back to where the passing over began.
- a job of another server, to which not everything had come, and which draws ids once more: the floor is zero then.

Lanes of rows with a time have a floor of their own, a time: what was written by transactions that have ended is at or
before it, unless somebody wrote a time that was long past already, or kept a transaction open for longer than `DUE_SLACK_US`
before its first write. Nothing forbids that, so now and then a look reads from the beginning.

A lane that was sent back reads past jobs that the shard already holds, so their ids must be excluded until it has
caught up; `behind()` says whether any is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from wqcore.job import PRIORITY_MAX, PRIORITY_MIN, Row

PRIORITIES_MAX = 32
"""Priorities that keep lanes of their own; beyond it the lowest is forgotten and found again from its head."""


Cursor = TypeVar("Cursor", int, tuple[int, int])
"""An id, or (run_at in µs, id)."""

Position = tuple[dict[tuple[int, int], int], dict[tuple[int, int], tuple[int, int]]]
"""Cursors of the ready and of the due lanes of a slot."""

_ID, _SLOT, _PRIORITY, _RUN_AT = Row.ID, Row.SLOT, Row.PRIORITY, Row.RUN_AT
"""Globals, because on Python 3.11 each look at an attribute of a class costs a job 25 ns."""

DUE_FIRST_US = -(2 * 10**17)
"""Before every timestamp that PostgreSQL can store usefully (4338 BC, in µs from 2000-01-01)."""
_DUE_FIRST = (DUE_FIRST_US, 0)
DUE_SLACK_US = 10_000_000
"""A job that is to run at once is written with the time at which its transaction began, or with its client's."""


class Lanes:
    """The cursors of one shard. Pure: no clock, no database."""

    def __init__(self, priorities: Iterable[int]) -> None:
        self.slots: list[int] = []
        self.floor = 0
        self.due_floor_us = DUE_FIRST_US
        self._priorities = sorted(set(priorities), reverse=True)
        self._after: dict[tuple[int, int], int] = {}
        self._top: dict[tuple[int, int], int] = {}
        self._due_after: dict[tuple[int, int], tuple[int, int]] = {}
        self._due_top: dict[tuple[int, int], tuple[int, int]] = {}
        self._behind: set[tuple[int, int]] = set()
        self._due_behind: set[tuple[int, int]] = set()
        self._aged: dict[tuple[int, int], int] = {}
        self._turned = 0
        self._sequence_seen: int | None = None
        self._now_seen: int | None = None
        self._turned_since_look = False
        self._sequence_seen_us = DUE_FIRST_US
        self._advance_due = False
        self._advance_ready = False
        self._marks: deque[tuple[int, int, int]] = deque()
        self._plan: list[tuple[int, int]] = []

    def set_slots(self, slots: Sequence[int]) -> None:
        """The slots owned now. New ones start at their head; lost ones are forgotten."""
        for slot in set(self.slots) - set(slots):
            self._forget(slot)
        self.slots = sorted(slots)

    def read_past(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Jobs that we hold and whose slots have just come: lanes that start anew must be read past them.

        A job runs on where it started when its slot is handed over, and the slot can come back before it ends.
        """
        for row in rows:
            lane = (row[_PRIORITY], row[_SLOT])
            self.learn(row[_PRIORITY])
            if row[_SLOT] not in self.slots or row[_PRIORITY] not in self._priorities:
                continue
            if row[_RUN_AT] is None:
                self._after.setdefault(lane, 0)
                self._top[lane] = max(row[_ID], self._top.get(lane, 0))
                self._behind.add(lane)
            else:
                self._due_top[lane] = max((row[_RUN_AT], row[_ID]), self._due_top.get(lane, _DUE_FIRST))
                self._due_behind.add(lane)

    def learn(self, priority: int) -> None:
        """Gives a priority lanes of its own."""
        if priority not in self._priorities:
            self._priorities = sorted([*self._priorities, priority], reverse=True)
            if len(self._priorities) > PRIORITIES_MAX:
                lowest = self._priorities.pop()
                for slot in self.slots:
                    self._restart((lowest, slot))

    def plan(self) -> tuple[list[int], list[int], list[int]]:
        """(slots, priorities, cursors) to read, the highest priority first, another slot first at each turn."""
        self._turned += 1
        start = self._turned % len(self.slots) if self.slots else 0
        turned = self.slots[start:] + self.slots[:start]
        self._plan = [(priority, slot) for priority in self._priorities for slot in turned]
        if self._aged:
            self._plan.sort(key=lambda lane: -(lane[0] + self._aged.get(lane, 0)))
        after = self._after
        return (
            [slot for _, slot in self._plan],
            [priority for priority, _ in self._plan],
            [after.get(lane, 0) for lane in self._plan],
        )

    def age(self, waited: Iterable[tuple[int, int, float]], ageing_s: float) -> None:
        """Reads lanes earlier whose oldest job has waited: (slot, priority, seconds), a point each `ageing_s`."""
        self._aged = {(priority, slot): int(seconds / ageing_s) for slot, priority, seconds in waited}

    def due_cursors(self) -> tuple[list[int], list[int]]:
        """(times in µs, ids) behind which the rows with a time go on, for the lanes of the last plan."""
        first = _DUE_FIRST
        cursors = [self._due_after.get(lane, first) for lane in self._plan]
        return [at for at, _ in cursors], [id_ for _, id_ in cursors]

    def gaps(self) -> tuple[list[int], list[int]]:
        """Open intervals (above, below) of priorities that have no lane yet."""
        edges = [PRIORITY_MAX + 1, *self._priorities, PRIORITY_MIN - 1]
        return edges[1:], edges[:-1]

    def behind(self) -> bool:
        """True while some lane re-reads rows that the shard may hold."""
        return bool(self._behind or self._due_behind)

    def position(self, slot: int) -> Position:
        """How far the lanes of a slot have been read."""
        return (
            {lane: after for lane, after in self._after.items() if lane[1] == slot},
            {lane: after for lane, after in self._due_after.items() if lane[1] == slot},
        )

    def rewind_to_position(self, slot: int, position: Position) -> None:
        """Sends the lanes of a slot back to where they were."""
        ready, due = position
        for lane, after in self._after.items():
            if lane[1] == slot and after > ready.get(lane, 0):
                self._send_back(lane, ready.get(lane, 0))
        for lane, cursor in self._due_after.items():
            if lane[1] == slot and cursor > due.get(lane, _DUE_FIRST):
                self._due_top[lane] = max(cursor, self._due_top.get(lane, cursor))
                self._due_after[lane] = due.get(lane, _DUE_FIRST)
                self._due_behind.add(lane)

    def took(self, rows: Sequence[tuple[Any, ...]], limit: int, *, passed_over: bool = False) -> bool:
        """Moves the cursors past what the last plan returned; True when a limit was hit, so that there may be more.

        `passed_over`: jobs of busy keys were left out. Lanes that were read to their end then move past those too, as
        far as the last look saw, so that no fetch walks over them again; whoever left them out remembers from where.
        """
        self._turned_since_look = True
        after, last = self._after, None
        ready = due = 0
        due_last: tuple[int, int] | None = None
        for row in rows:
            run_at = row[_RUN_AT]
            if run_at is None:
                ready += 1
                last = (row[_PRIORITY], row[_SLOT])
                after[last] = row[_ID]
            else:
                due += 1
                due_last = (row[_PRIORITY], row[_SLOT])
                self._due_after[due_last] = (run_at, row[_ID])
        if self._behind:
            self._catch_up(last if ready >= limit else None, after, self._top, self._behind, 0)
        if self._due_behind:
            reached = due_last if due >= limit else None
            self._catch_up(reached, self._due_after, self._due_top, self._due_behind, _DUE_FIRST)
        if self._advance_ready:
            self._pass_floor(last if ready >= limit else None)
        if passed_over:
            self._pass_over(last if ready >= limit else None)
        if passed_over or self._advance_due:
            self._pass_due(due_last if due >= limit else None)
        return ready >= limit or due >= limit

    def _pass_over(self, partial: tuple[int, int] | None) -> None:
        """`partial` is the lane at which a limit stopped the fetch: it and those after it were not read to their end."""
        for lane in self._plan:
            if lane == partial:
                break
            if self._sequence_seen is not None and lane not in self._behind:
                self._after[lane] = max(self._after.get(lane, 0), self._sequence_seen)

    def _pass_floor(self, partial: tuple[int, int] | None) -> None:
        """Lanes that were read to their end go on from the floor at least: nothing can appear below it.

        A lane without a job keeps no other cursor. Beside an old snapshot a new owner walked, in each turn, over all jobs
        that had ever been in a lane until one came: 75,000 rows a turn where nobody used a priority any more.
        """
        for lane in self._plan:
            if lane == partial:
                return
            if lane not in self._behind:
                self._after[lane] = max(self._after.get(lane, 0), self.floor)
        self._advance_ready = False

    def _pass_due(self, partial: tuple[int, int] | None) -> None:
        """Due lanes that were read to their end go on from the last look's time, so that no fetch walks over what is gone.

        A lane without a job keeps no other cursor: beside an old snapshot each turn walked all that had ever been due.
        """
        if self._now_seen is None:
            return
        for lane in self._plan:
            if lane == partial:
                return
            if lane not in self._due_behind:
                self._due_after[lane] = max(self._due_after.get(lane, _DUE_FIRST), (self._now_seen, 0))
        self._advance_due = False

    def look(self, sequence: int, oldest_xid: int, next_xid: int, *, late: bool, now_us: int | None = None) -> None:
        """Takes in a look at the database; moves the floor up, or sends the lanes back to it when `late`."""
        self._now_seen = now_us
        self._advance_due = self._advance_ready = True
        if late:
            self.rewind_to(self.floor)
        elif not self._behind:
            while self._marks and self._marks[0][1] <= oldest_xid:
                floor, _, at_us = self._marks.popleft()
                self.floor = max(self.floor, floor)
                self.due_floor_us = max(self.due_floor_us, at_us - DUE_SLACK_US)
        if self._sequence_seen is None or self._turned_since_look:
            if self._sequence_seen is not None:
                self._marks.append((self._sequence_seen, next_xid, self._sequence_seen_us))
            self._sequence_seen = sequence
            self._sequence_seen_us = DUE_FIRST_US if now_us is None else now_us
        self._turned_since_look = False

    def connected(self, *, another: bool) -> None:
        """A new connection can lead to another server, whose clock may differ: what was learned of times is void.

        `another`: it does, or to the same one after a crash. What had not got there is gone, so it may draw ids once more that
        are below the floor: looks search everything behind the cursors until there is a new floor.
        """
        if another:
            self.floor = 0
        self.due_floor_us = DUE_FIRST_US
        self._now_seen = None
        self._marks.clear()
        self._sequence_seen = None

    def rewind_to(self, floor: int) -> None:
        """Sends every lane that is beyond `floor` back to it."""
        for lane, cursor in self._after.items():
            if cursor > floor:
                self._send_back(lane, floor)

    def rewind_before(self, slot: int, priority: int, job_id: int) -> None:
        """Sends one lane back to just before a job, and lets due jobs of its slot be read anew."""
        if self._after.get((priority, slot), 0) >= job_id:
            self._send_back((priority, slot), job_id - 1)
        self.rewind_due([slot])

    def rewind_slot(self, slot: int) -> None:
        """Starts all lanes of a slot anew."""
        for lane in [lane for lane in self._after if lane[1] == slot]:
            self._send_back(lane, 0)
        self.rewind_due([slot])

    def rewind_due(self, slots: Iterable[int]) -> None:
        """Reads the due rows of these slots from the oldest on."""
        chosen = set(slots)
        for lane in [lane for lane in self._due_after if lane[1] in chosen]:
            cursor = self._due_after.pop(lane)
            self._due_top[lane] = max(cursor, self._due_top.get(lane, cursor))
            self._due_behind.add(lane)

    def rewind_due_to(self, at_us: int) -> None:
        """Sends the due lanes back to a time, those that are beyond it."""
        for lane, cursor in self._due_after.items():
            if cursor > (at_us, 0):
                self._due_top[lane] = max(cursor, self._due_top.get(lane, cursor))
                self._due_after[lane] = (at_us, 0)
                self._due_behind.add(lane)

    def newest_beyond_floor(self) -> int:
        """How many ids lie between the floor and the furthest cursor: what going back to the floor may cost."""
        return max(self._after.values(), default=0) - self.floor

    def _send_back(self, lane: tuple[int, int], after: int) -> None:
        self._top[lane] = max(self._after[lane], self._top.get(lane, 0))
        self._after[lane] = after
        self._behind.add(lane)

    def _catch_up(
        self,
        partial: tuple[int, int] | None,
        after: dict[tuple[int, int], Cursor],
        top: dict[tuple[int, int], Cursor],
        behind: set[tuple[int, int]],
        first: Cursor,
    ) -> None:
        """Lanes that were read to their end go on from where they had been; `partial` is where a limit stopped us."""
        for lane in self._plan:
            if lane == partial:
                if after[lane] >= top.get(lane, first):
                    behind.discard(lane)
                return
            if lane in behind:
                after[lane] = max(after.get(lane, first), top.get(lane, first))
                behind.discard(lane)

    def _restart(self, lane: tuple[int, int]) -> None:
        self._after.pop(lane, None)
        self._top.pop(lane, None)
        self._behind.discard(lane)
        self._due_after.pop(lane, None)
        self._due_top.pop(lane, None)
        self._due_behind.discard(lane)

    def _forget(self, slot: int) -> None:
        for lane in [lane for lane in {*self._after, *self._due_after, *self._due_top} if lane[1] == slot]:
            self._restart(lane)
