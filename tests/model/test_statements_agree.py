"""Whatever shards, people and keepers do in whatever order, each statement answers as its model, and no job is lost.

A Hypothesis state machine: two shards on real SQL, each with the memory of a worker, and a loss of any reply. More
examples by `WQ_EXAMPLES`; a failure prints the steps, and `--hypothesis-seed` repeats it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.fix_pg import PROCESS, Fresh
from tests.model import people
from tests.model.twin import AFTER, BEFORE, FAR, Twin
from wqcore import clock
from wqcore.db import wake
from wqcore.db.connect import connect_for_turns
from wqcore.job import Row
from wqcore.line.gone import without_known
from wqcore.line.lanes import Lanes
from wqcore.line.settle import Again, Ended, Outcomes
from wqcore.line.turn import Fenced

EXAMPLES = int(os.environ.get("WQ_EXAMPLES", "25"))
STEPS = 30

SIDES = st.integers(0, 1)
PICK = st.integers(0, 99)
PRIORITIES = st.sampled_from([1, 1, 5])
MODES = st.sampled_from(["replace", "preserve_run_at", "unsafe_dedupe"])
ENDS = st.sampled_from(["ok", "ok", "fail", "snooze", "discard"])
OF_A_TURN = st.sampled_from(["settle_retry", "settle_end", "turn"])
LOSE = st.one_of(st.none(), st.none(), st.tuples(OF_A_TURN, st.sampled_from([BEFORE, AFTER])))


class Side:
    """The memory of one worker."""

    def __init__(self, twin: Twin, shard: int) -> None:
        self.shard = shard
        self.twin = twin
        self.protocol = twin.protocol(shard)
        self.lanes = Lanes({1})
        self.waiting: list[tuple[Any, ...]] = []
        self.running: list[tuple[Any, ...]] = []
        self.outcomes = Outcomes()
        self.started: dict[int, int] = {}
        """What the board shows: job → attempt of each run that no reply has confirmed as ended."""
        self.elsewhere: dict[int, str | None] = {}

    def held(self) -> list[int]:
        return [row[Row.ID] for row in self.waiting + self.running]

    async def turn(self, limit: int) -> None:
        """As Shard._turn; a lost reply leaves all outcomes for the next."""
        sent, self.outcomes = self.outcomes, Outcomes()
        held, left_out = self.held(), [*self.held(), *self.elsewhere, *sent.ids()]
        try:
            await self.protocol.retry(sent.again)
            await self.protocol.end(sent.ended)
            turned = await self.protocol.turn(
                sent, self.lanes, limit=limit, held=held, exclude=left_out, busy_keys=[], changed=True
            )
        except psycopg.OperationalError:
            self.outcomes.absorb(sent)
            return
        self.started = {row[Row.ID]: row[Row.ATTEMPT] for row in self.running}
        if limit:
            self.lanes.took(turned.rows, limit)
        self.waiting += without_known(turned.rows, held, sent)
        if turned.done_count != len(sent.done):
            for job, slot, priority in await self.protocol.remaining(sent.done_ids):
                self.lanes.rewind_before(slot, priority, job)

    async def look(self) -> None:
        look = await self.protocol.look(self.lanes, self.held() + self.outcomes.ids() + list(self.elsewhere))
        self.lanes.look(look.sequence, look.oldest_xid, look.next_xid, late=look.late, now_us=look.now_us)
        if look.gap_priority is not None:
            self.lanes.learn(look.gap_priority)
        if look.due_late is not None:
            self.lanes.rewind_due_to(look.due_late)
        for job, reason in await self.protocol.cancels(self.held()):
            for rows, started in ((self.waiting, False), (self.running, True)):
                for row in [row for row in rows if row[Row.ID] == job]:
                    rows.remove(row)
                    self.outcomes.ended.append(
                        Ended(job, row[Row.REVISION], clock.monotonic(), "cancelled", people.error(reason), started=started)
                    )
        await self.refresh()

    async def refresh(self) -> None:
        found = {job: key for job, _, key in await self.protocol.held_elsewhere(self.lanes.slots)}
        if found.keys() != self.elsewhere.keys():
            for slot in self.lanes.slots:
                self.lanes.rewind_slot(slot)
        self.elsewhere = found

    async def give(self, slot: int) -> None:
        """Disowns a slot, writes the claim without what waited in it, and releases it."""
        self.lanes.set_slots([own for own in self.lanes.slots if own != slot])
        self.waiting = [row for row in self.waiting if row[Row.SLOT] != slot]
        await self.turn(0)
        await self.protocol.release_slots([slot])

    async def take(self, count: int) -> None:
        self.lanes.set_slots(await self.protocol.take_slots(count))
        await self.refresh()

    def forget(self, jobs: set[int]) -> None:
        """They are gone from the table."""
        self.waiting = [row for row in self.waiting if row[Row.ID] not in jobs]
        self.running = [row for row in self.running if row[Row.ID] not in jobs]

    def start(self, at: int) -> None:
        row = self.waiting[at % len(self.waiting)]
        key = row[Row.SERIAL_KEY]
        busy = {other[Row.SERIAL_KEY] for other in self.running} | set(self.elsewhere.values())
        if key is not None and key in busy:
            return
        self.waiting.remove(row)
        self.running.append(row)
        self.started[row[Row.ID]] = row[Row.ATTEMPT]

    def finish(self, at: int, what: str, delay_s: float) -> None:
        row = self.running.pop(at % len(self.running))
        job, revision, attempt = row[Row.ID], row[Row.REVISION], row[Row.ATTEMPT]
        if what == "fail" and attempt + 1 >= row[Row.MAX_ATTEMPTS]:
            what = "discard"
        if what == "ok":
            self.outcomes.done.append(row)
            self.outcomes.done_began.append(clock.monotonic())
        elif what in ("fail", "snooze"):
            ready = row[Row.CREATED_AT] if row[Row.RUN_AT] is None else row[Row.RUN_AT]
            failed = what == "fail"
            self.outcomes.again.append(
                Again(job, revision, attempt + failed, delay_s, people.error("boom") if failed else None, ready)
            )
        else:
            self.outcomes.ended.append(Ended(job, revision, clock.monotonic(), "discarded", people.error("no")))


class Machine(RuleBasedStateMachine):
    """The rules; `twin` and `loop` are those of the test."""

    twin: Twin
    loop: asyncio.AbstractEventLoop

    @initialize()
    def begin(self) -> None:
        self.wait_for(self._begin())

    async def _begin(self) -> None:
        self.sides = [Side(self.twin, 1), Side(self.twin, 2)]
        self.shards = 2
        self.inserted: set[int] = set()
        self.deleted: set[int] = set()
        for side in self.sides:
            await side.protocol.register(PROCESS)
            await side.take(2)
        for slot in range(4):
            self.inserted.add(self.twin.insert(slot=slot, priority=1, serial_key=None, run_at=None))

    def wait_for(self, work: Coroutine[Any, Any, None]) -> None:
        self.loop.run_until_complete(work)

    @rule(slot=st.integers(0, 3), priority=PRIORITIES, key=st.sampled_from([None, None, "a"]), later=st.booleans())
    def insert(self, slot: int, priority: int, key: str | None, later: bool) -> None:
        run_at = FAR if later and slot == 3 else None
        self.inserted.add(self.twin.insert(slot=0 if key else slot, priority=priority, serial_key=key, run_at=run_at))

    @rule(key=st.sampled_from("xy"), mode=MODES, slot=st.integers(0, 3))
    def insert_keyed(self, key: str, mode: str, slot: int) -> None:
        self.inserted.add(self.twin.insert_keyed(key, mode, slot)[0])

    @rule(at=SIDES, limit=st.integers(0, 3), lose=LOSE)
    def turn(self, at: int, limit: int, lose: tuple[str, str] | None) -> None:
        self.twin.lose = lose
        self.wait_for(self.sides[at].turn(limit))
        self.twin.lose = None

    @rule(at=SIDES, picks=st.lists(PICK, max_size=3), what=ENDS, lose=LOSE)
    def work(self, at: int, picks: list[int], what: str, lose: tuple[str, str] | None) -> None:
        """Claims, runs and acknowledges: what a worker does most of the time."""
        side = self.sides[at]
        self.wait_for(side.turn(3))
        for pick in picks:
            if side.waiting:
                side.start(pick)
            if side.running:
                side.finish(pick, what, 0.0)
        self.twin.lose = lose
        self.wait_for(side.turn(0))
        self.twin.lose = None

    @rule(at=SIDES)
    def look(self, at: int) -> None:
        self.wait_for(self.sides[at].look())

    @rule(at=SIDES, pick=PICK)
    def start(self, at: int, pick: int) -> None:
        if self.sides[at].waiting:
            self.sides[at].start(pick)

    @rule(at=SIDES, pick=PICK, what=ENDS, delay_s=st.sampled_from([0.0, 3600.0]))
    def finish(self, at: int, pick: int, what: str, delay_s: float) -> None:
        if self.sides[at].running:
            self.sides[at].finish(pick, what, delay_s)

    @rule(at=SIDES, pick=PICK)
    def hand_a_slot_over(self, at: int, pick: int) -> None:
        side, other = self.sides[at], self.sides[1 - at]
        if side.lanes.slots:
            self.wait_for(side.give(side.lanes.slots[pick % len(side.lanes.slots)]))
            self.wait_for(other.take(1))

    @rule(at=SIDES, suspect_rest=st.booleans())
    def die_and_be_rescued(self, at: int, suspect_rest: bool) -> None:
        self.wait_for(self._rescue(at, suspect_rest))

    async def _rescue(self, at: int, suspect_rest: bool) -> None:
        dead, self.shards = self.sides[at], self.shards + 1
        await self.twin.rescue(dead.shard, list(dead.started.items()), suspect_rest=suspect_rest)
        await self.twin.rescue(dead.shard, list(dead.started.items()), suspect_rest=suspect_rest)
        for work in (dead.turn(3), dead.look()):
            with pytest.raises(Fenced):
                await work
        self.sides[at] = Side(self.twin, self.shards)
        await self.sides[at].protocol.register(PROCESS)
        await self.sides[at].take(2)

    @precondition(lambda self: self.inserted)
    @rule(pick=PICK, what=st.sampled_from(["cancel", "reprioritise", "now", "later", "delete", "put_back"]))
    def ask(self, pick: int, what: str) -> None:
        job, twin = sorted(self.inserted)[pick % len(self.inserted)], self.twin
        if what == "cancel":
            twin.cancel(job)
        elif what == "reprioritise":
            twin.reprioritise(job, 5)
        elif what in ("now", "later"):
            twin.reschedule(job, 0.0 if what == "now" else 3600.0)
        elif what == "put_back":
            twin.put_back(job)
        elif twin.delete(job):
            self.deleted.add(job)

    @rule()
    def sweep_cancellations(self) -> None:
        self.twin.cancel_unheld()

    @invariant()
    def both_sides_are_the_same(self) -> None:
        if hasattr(self, "sides"):
            self.twin.same()
            gone = {job for text in self.twin.told if (hint := wake.parse(text)) for job in hint.gone}
            self.twin.told.clear()
            for side in self.sides:
                side.forget(gone - self.twin.tables.jobs.keys())

    @invariant()
    def every_job_is_in_one_place(self) -> None:
        if hasattr(self, "sides"):
            tables = self.twin.tables
            ended = [record.row.id for record in tables.history]
            assert sorted([*tables.jobs, *ended]) == sorted(self.inserted - self.deleted)

    @invariant()
    def no_job_and_no_serial_key_runs_twice(self) -> None:
        if hasattr(self, "sides"):
            rows = [row for side in self.sides for row in side.running]
            keys = [row[Row.SERIAL_KEY] for row in rows if row[Row.SERIAL_KEY] is not None]
            assert len({row[Row.ID] for row in rows}) == len(rows)
            assert len(set(keys)) == len(keys)

    def teardown(self) -> None:
        if hasattr(self, "sides"):
            self.wait_for(self._drain())

    async def _drain(self) -> None:
        """Nothing goes wrong any more: every job ends."""
        twin = self.twin
        for _ in range(12):
            for job in list(twin.tables.jobs):  # those that wait for a later time
                twin.reschedule(job, 0.0)
            twin.cancel_unheld()
            twin.same()
            if not twin.tables.jobs:
                break
            for side in self.sides:
                await side.take(4)
                await side.look()
                await side.turn(10)
                for _ in range(1 + len(side.waiting)):  # one after the other, because of serial keys
                    while side.running:
                        side.finish(0, "ok", 0.0)
                    if side.waiting:
                        side.start(0)
                await side.turn(0)
            twin.same()
        assert not twin.tables.jobs, "stranded"
        assert len(twin.tables.history) == len(self.inserted - self.deleted)


def run(database: Fresh, examples: int, *, repeatable: bool = False) -> None:
    """Runs the machine on a database; a repeatable run takes the same examples each time, and shrinks none."""
    loop = asyncio.new_event_loop()
    conn = loop.run_until_complete(connect_for_turns(database.dsn, database.settings.database, name="twin"))

    def machine() -> Machine:
        made = Machine()
        made.loop, made.twin = loop, Twin(database, conn)
        return made

    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=examples, stateful_step_count=STEPS, deadline=None, database=None, print_blob=not repeatable,
                derandomize=repeatable, suppress_health_check=list(HealthCheck),
                phases=[Phase.generate] if repeatable else [Phase.generate, Phase.shrink],
            ),
        )  # fmt: skip
    finally:
        loop.run_until_complete(conn.close())
        loop.close()


def test_the_statements_do_what_their_model_does(database: Fresh) -> None:
    run(database, EXAMPLES)


@pytest.mark.parametrize(
    ("name", "guard", "instead"),
    [
        ("turn", "%(held)s::bigint[] || array(select id from next)", "array(select id from next)"),
        ("settle_retry", "j.attempt < f.attempt", "true"),
    ],
)
def test_a_statement_without_one_of_its_guards_is_caught(database: Fresh, name: str, guard: str, instead: str) -> None:
    text = database.statements[name].decode()
    assert guard in text
    database.statements._texts[name] = text.replace(guard, instead).encode()
    with pytest.raises((AssertionError, BaseExceptionGroup)):
        run(database, 200, repeatable=True)
