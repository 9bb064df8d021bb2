"""The checker says nothing about a run in which all went well, and names each error that is planted in it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from tests.check.history import END, KEEPER, End, Fault, Finished, History, Ran, Said, Waiting, Wrote, monotonic, read
from tests.check.rules import RULES
from tests.check.verdict import findings, verdict

MS = 1_000_000
OWN, OTHER = 11, 22
"""Two shards: the processes 1011 and 1022."""
ALL_WELL, FAILED_ONCE, SNOOZED, DIED, EFFECT, KEYED_1, KEYED_2, CANCELLED, DISCARDED, REPLACED, ONCE = range(1, 12)


class Story:
    """A history that is told event by event; the clock goes on by a second with each."""

    def __init__(self) -> None:
        self.now = 0
        self.said: list[Said] = []
        self.ran: list[Ran] = []
        self.wrote: list[Wrote] = []
        self.faults: list[Fault] = []
        self.end = End(effect_kinds=["effect"], dead_after_s=2.0, deaths_max=3)
        self._numbers = itertools.count(1)
        self._xids = itertools.count(500)
        for shard in (OWN, OTHER):
            self.write("shard", "insert", shard=shard)

    @property
    def history(self) -> History:
        return History(said=self.said, ran=self.ran, wrote=self.wrote, faults=self.faults, end=self.end)

    def tick(self) -> int:
        self.now += 1000 * MS
        return self.now

    def write(self, table: Any, op: Any, *, by: str = "wqcore default shard 11", xid: int = 0, **fields: Any) -> Wrote:
        line = Wrote(
            seq=next(self._numbers), at=self.tick(), xid=xid or next(self._xids), by=by, table=table, op=op, **fields
        )
        self.wrote.append(line)
        return line

    def say(self, phase: Any, token: int, **fields: Any) -> None:
        self.said.append(Said(at=self.tick(), op=token, phase=phase, token=token, **fields))

    def insert(self, job: int, *, once: bool = False) -> None:
        """An insert that is acknowledged; the token of a job is a hundred times its id."""
        self.say("invoke", job * 100, once=once)
        self.write("job", "insert", by="wqcore client", job=job, revision=0, attempt=0, deaths=0, token=job * 100)
        self.say("ok", job * 100, job=job, did="inserted", once=once)

    def start(self, job: int, attempt: int = 1, *, shard: int = OWN, revision: int = 0, **fields: Any) -> str:
        run = f"{shard}.{next(self._numbers)}"
        self.ran.append(
            Ran(
                at=self.tick(),
                run=run,
                phase="start",
                job=job,
                attempt=attempt,
                revision=revision,
                shard=shard,
                pid=1000 + shard,
                **({"kind": "plain"} | fields),
            )
        )
        return run

    def finish(self, run: str, how: str = "ok") -> None:
        self.ran.append(Ran(at=self.tick(), run=run, phase="end", how=how))

    def change(self, job: int, *, attempt: tuple[int, int], deaths: tuple[int, int] = (0, 0), **fields: Any) -> None:
        """An update of the job's row that leaves its revision."""
        self.write(
            "job", "update", job=job, revision=0, was_revision=0, was_attempt=attempt[0], attempt=attempt[1],
            was_deaths=deaths[0], deaths=deaths[1], token=job * 100, **fields,
        )  # fmt: skip

    def over(self, job: int, outcome: str = "completed", *, before: int = 0, attempt: int = 1, deaths: int = 0,
             revision: int = 0, shard: int | None = OWN, kind: str = "plain", token: int = 0) -> Wrote:  # fmt: skip
        """The job's row goes, and its terminal record comes, in one transaction."""
        token, xid = token or job * 100, next(self._xids)
        row = {"job": job, "deaths": deaths, "token": token, "xid": xid}
        self.write("job", "delete", attempt=before, revision=revision, **row)
        record = self.write("history", "insert", attempt=attempt, shard=shard, outcome=outcome, **row)
        self.end.finished.append(
            Finished(
                job=job,
                kind=kind,
                outcome=outcome,
                attempt=attempt,
                max_attempts=5,
                deaths=deaths,
                shard=shard,
                token=token,
            )
        )
        return record

    def rescue(self, shard: int) -> int:
        """A keeper takes the lease away; the transaction in which it does."""
        return self.write("shard", "delete", by=KEEPER, shard=shard).xid


@pytest.fixture
def story() -> Story:
    """A run with one of everything, and nothing wrong."""
    story = Story()
    story.insert(ALL_WELL)
    story.finish(story.start(ALL_WELL))
    story.over(ALL_WELL)

    story.insert(FAILED_ONCE)
    story.finish(story.start(FAILED_ONCE), "failed")
    story.change(FAILED_ONCE, attempt=(0, 1))
    story.finish(story.start(FAILED_ONCE, 2))
    story.over(FAILED_ONCE, before=1, attempt=2)

    story.insert(SNOOZED)
    story.finish(story.start(SNOOZED), "snoozed")
    story.finish(story.start(SNOOZED))
    story.over(SNOOZED)

    story.insert(EFFECT)
    run = story.start(EFFECT, kind="effect")
    story.ran.append(Ran(at=story.tick(), run=run, phase="commit"))
    story.over(EFFECT, kind="effect")
    story.end.effects.append(EFFECT)
    story.finish(run, "failed")  # the reply of its commit was lost

    for job in (KEYED_1, KEYED_2):
        story.insert(job)
        story.finish(story.start(job, key="k"))
        story.over(job)

    story.insert(CANCELLED)
    story.over(CANCELLED, "cancelled", attempt=0, shard=None)
    story.insert(DISCARDED)
    story.finish(story.start(DISCARDED), "discarded")
    story.over(DISCARDED, "discarded")

    story.insert(REPLACED)
    story.say("invoke", 999)
    story.write("job", "update", job=REPLACED, revision=1, was_revision=0, attempt=0, was_attempt=0, deaths=0,
                was_deaths=0, token=999)  # fmt: skip
    story.say("ok", 999, job=REPLACED, did="replaced")
    story.finish(story.start(REPLACED, revision=1))
    story.over(REPLACED, revision=1, token=999)

    story.insert(ONCE, once=True)
    story.say("invoke", 100 * ONCE, once=True)
    story.say("ok", 100 * ONCE, job=ONCE, did="skipped", once=True)
    story.finish(story.start(ONCE))
    story.over(ONCE)

    # its process was suspended, and lost its lease; the older run goes on afterwards, and writes nothing
    story.insert(DIED)
    zombie = story.start(DIED, shard=OTHER)
    story.faults.append(Fault(at=story.tick(), until=story.tick(), what="suspend worker", pids=[1000 + OTHER]))
    story.change(DIED, attempt=(0, 1), deaths=(0, 1), by=KEEPER, xid=story.rescue(OTHER))
    newest = story.start(DIED, 2)
    story.finish(zombie)
    story.finish(newest)
    story.over(DIED, before=1, attempt=2, deaths=1)

    story.say("invoke", 777)
    story.say("fail", 777)
    story.say("invoke", 778)
    return story


def test_nothing_is_said_about_a_run_in_which_all_went_well(story: Story) -> None:
    found = findings(story.history)
    assert found == []
    line = verdict(story.history, found)
    assert line.startswith("0 lost, 0 resurrected, 0 stranded, 0 ended twice, ")
    assert (
        "11 jobs ended (1 cancelled, 9 completed, 1 discarded), 13 runs, 3 of them repeated, 1 workers rescued" in line
    )


def lose(story: Story) -> None:
    story.end.finished = [row for row in story.end.finished if row.job != ALL_WELL]
    story.wrote = [line for line in story.wrote if line.job != ALL_WELL]


def lose_one_of_a_bulk(story: Story) -> None:
    story.say("invoke", 1234)
    story.say("ok", 1234)


def lose_a_replacement(story: Story) -> None:
    for line in story.wrote:
        if line.job == REPLACED and line.token == 999:
            line.token = 100 * REPLACED
    for row in story.end.finished:
        if row.job == REPLACED:
            row.token = 100 * REPLACED


def run_what_was_replaced(story: Story) -> None:
    next(row for row in story.end.finished if row.job == REPLACED).token = 100 * REPLACED


def keep_what_was_refused(story: Story) -> None:
    story.write("job", "insert", by="wqcore client", job=50, revision=0, attempt=0, deaths=0, token=777)
    story.over(50, "cancelled", attempt=0, shard=None, token=777)


def make_two_of_one(story: Story) -> None:
    story.write("job", "insert", by="wqcore client", job=50, revision=0, attempt=0, deaths=0, token=100 * ONCE)
    story.over(50, "cancelled", attempt=0, shard=None, token=100 * ONCE)


def strand(story: Story) -> None:
    story.insert(50)
    story.end.waiting.append(Waiting(job=50, kind="plain", attempt=0, token=5000))


def end_twice(story: Story) -> None:
    row = next(row for row in story.end.finished if row.job == ALL_WELL)
    story.end.finished.append(row)
    story.write("history", "insert", job=ALL_WELL, attempt=1, deaths=0, shard=OWN, outcome="completed")


def end_and_wait(story: Story) -> None:
    story.end.waiting.append(Waiting(job=ALL_WELL, kind="plain", attempt=0, token=100))


def let_the_zombie_write(story: Story) -> None:
    """The suspended worker acknowledges its run while the newest is on."""
    record = next(line for line in story.wrote if line.table == "history" and line.job == DIED)
    record.shard = OTHER
    next(row for row in story.end.finished if row.job == DIED).shard = OTHER


def let_another_cancel(story: Story) -> None:
    story.insert(50)
    run = story.start(50)
    story.over(50, "cancelled", before=0, attempt=0, shard=33)
    story.finish(run, "interrupted")


def overlap(story: Story) -> None:
    story.insert(50)
    first, second = story.start(50), story.start(50, shard=33)
    story.finish(first, "interrupted")
    story.finish(second)
    story.over(50, shard=33)


def overlap_in_a_thread(story: Story) -> None:
    """A seat is left while the thread of its job still runs."""
    story.insert(50)
    first = story.start(50)
    story.ran.append(Ran(at=story.tick(), run=first, phase="body"))
    story.finish(first, "interrupted")
    second = story.start(50)
    story.ran.append(Ran(at=story.tick(), run=first, phase="left"))
    story.finish(second)
    story.over(50)


def overlap_a_key(story: Story) -> None:
    story.insert(50)
    story.insert(51)
    first, second = story.start(50, key="k"), story.start(51, key="k", shard=33)
    story.finish(first)
    story.finish(second)
    story.over(50)
    story.over(51, shard=33)


def murder(story: Story) -> None:
    story.faults.clear()


def charge_what_never_ran(story: Story) -> None:
    story.insert(50)
    story.change(50, attempt=(0, 1))
    story.over(50, "cancelled", before=1, attempt=1, shard=None)


def charge_two_at_once(story: Story) -> None:
    story.insert(50)
    story.change(50, attempt=(0, 2))
    story.over(50, "cancelled", before=2, attempt=2, shard=None)


def charge_many_of_one_rescue(story: Story) -> None:
    """One run may die before it has written its start; two of one worker cannot."""
    xid = story.rescue(33)
    for job in (50, 51):
        story.insert(job)
        story.change(job, attempt=(0, 1), deaths=(0, 1), by=KEEPER, xid=xid)
        story.over(job, "cancelled", before=1, attempt=1, deaths=1, shard=None)


def charge_a_death_without_one(story: Story) -> None:
    story.insert(50)
    story.change(50, attempt=(0, 0), deaths=(0, 1), by=KEEPER)
    story.over(50, "cancelled", attempt=0, deaths=1, shard=None)


def forget_an_attempt(story: Story) -> None:
    story.insert(50)
    story.finish(story.start(50), "failed")
    story.finish(story.start(50))
    story.over(50)


def charge_a_snooze(story: Story) -> None:
    """Its worker died after the snooze was written, and the rescue charged what an old heartbeat had shown."""
    story.insert(50)
    story.finish(story.start(50, shard=33), "snoozed")
    story.change(50, attempt=(0, 0), by="wqcore default shard 33")
    story.change(50, attempt=(0, 1), deaths=(0, 1), by=KEEPER, xid=story.rescue(33))
    story.finish(story.start(50, 2))
    story.over(50, before=1, attempt=2, deaths=1)


def complete_without_counting(story: Story) -> None:
    story.insert(50)
    story.finish(story.start(50, attempt=1))
    story.change(50, attempt=(0, 1))
    story.over(50, before=1, attempt=1)


def discard_too_early(story: Story) -> None:
    story.insert(50)
    story.finish(story.start(50), "failed")
    story.over(50, "discarded")


def complete_what_failed(story: Story) -> None:
    story.insert(50)
    story.finish(story.start(50), "failed")
    story.over(50)


def complete_another_revision(story: Story) -> None:
    """The run was of the args before a replacement; the acknowledgement should have left the row."""
    next(line for line in story.ran if line.job == REPLACED).revision = 0


def lose_an_effect(story: Story) -> None:
    story.end.effects.clear()


def have_an_effect_twice(story: Story) -> None:
    story.end.effects.append(EFFECT)


def have_an_effect_of_nothing(story: Story) -> None:
    story.end.effects.append(CANCELLED)


def leave_a_process(story: Story) -> None:
    story.end.orphans.append("4711 wqcore: worker default/0")


def leave_a_transaction(story: Story) -> None:
    story.end.idle_transactions.append("wqcore default shard 11 for 00:00:07: select 1")


def leave_a_lease(story: Story) -> None:
    story.end.rows_left["leases"] = 1


def crash_a_master(story: Story) -> None:
    story.end.problems.append("master0-0.log ended by itself with code 70")


def drop_a_row(story: Story) -> None:
    """A job's row goes without a record; its insert was never acknowledged, so nobody can call it lost."""
    story.write("job", "insert", by="wqcore client", job=50, revision=0, attempt=0, deaths=0, token=778)
    story.write("job", "delete", job=50, revision=0, attempt=0, deaths=0, token=778)


def drop_a_record(story: Story) -> None:
    story.insert(50)
    story.over(50, "cancelled", attempt=0, shard=None)
    story.end.finished.pop()


@pytest.mark.parametrize(
    ("plant", "rules"),
    [
        (lose, {"lost"}),
        (lose_one_of_a_bulk, {"lost"}),
        (lose_a_replacement, {"lost"}),
        (run_what_was_replaced, {"lost"}),
        (keep_what_was_refused, {"resurrected"}),
        (make_two_of_one, {"resurrected"}),
        (strand, {"stranded"}),
        (end_twice, {"ended twice"}),
        (end_and_wait, {"ended twice", "stranded"}),
        (let_the_zombie_write, {"ended by an older run", "unearned"}),
        (let_another_cancel, {"ended by an older run"}),
        (overlap, {"overlap"}),
        (overlap_in_a_thread, {"overlap"}),
        (overlap_a_key, {"key overlap"}),
        (murder, {"murdered"}),
        (charge_what_never_ran, {"miscounted"}),
        (charge_two_at_once, {"miscounted"}),
        (charge_many_of_one_rescue, {"miscounted"}),
        (charge_a_death_without_one, {"miscounted"}),
        (forget_an_attempt, {"miscounted"}),
        (charge_a_snooze, {"miscounted"}),
        (complete_without_counting, {"miscounted"}),
        (discard_too_early, {"miscounted"}),
        (complete_what_failed, {"unearned"}),
        (complete_another_revision, {"unearned", "miscounted"}),
        (lose_an_effect, {"wrong effect"}),
        (have_an_effect_twice, {"wrong effect"}),
        (have_an_effect_of_nothing, {"wrong effect"}),
        (leave_a_process, {"left over"}),
        (leave_a_transaction, {"left over"}),
        (leave_a_lease, {"left over"}),
        (crash_a_master, {"left over"}),
        (drop_a_row, {"unreconciled"}),
        (drop_a_record, {"lost", "unreconciled"}),
    ],
)
def test_a_planted_error_is_named(story: Story, plant: Callable[[Story], None], rules: set[str]) -> None:
    plant(story)
    assert {finding.rule for finding in findings(story.history)} == rules


def test_every_rule_has_an_error_that_it_finds(story: Story) -> None:
    marks: Any = test_a_planted_error_is_named
    cases = marks.pytestmark[0].args[1]
    assert set().union(*(rules for _, rules in cases)) == set(RULES)


@pytest.mark.parametrize(
    ("excuse", "at_fault"),
    [
        (Fault(at=0, until=1 << 60, what="freeze server"), False),
        (Fault(at=0, until=1 << 60, what="suspend worker", pids=[1000 + OTHER]), False),
        (Fault(at=0, until=1 << 60, what="suspend worker", pids=[1000 + OWN]), True),
        (Fault(at=0, until=1, what="freeze server"), True),
    ],
)
def test_a_worker_is_murdered_unless_something_was_done_to_it_lately(
    story: Story, excuse: Fault, at_fault: bool
) -> None:
    story.faults[:] = [excuse]
    assert bool(list(RULES["murdered"](story.history))) is at_fault


def test_a_crash_of_the_server_excuses_an_uncounted_run_and_one_long_before_does_not(story: Story) -> None:
    story.faults.append(Fault(at=0, until=1, what="restart server"))
    forget_an_attempt(story)
    assert len(findings(story.history)) == 1
    run = next(run for run in story.history.runs if run.job == 50)
    story.faults.append(Fault(at=run.start, until=run.end, what="restart server"))
    assert findings(story.history) == []


@pytest.mark.parametrize(("deaths", "excused"), [((0, 1), True), ((0, 0), False)])
def test_a_death_alone_excuses_an_uncounted_run(story: Story, deaths: tuple[int, int], excused: bool) -> None:
    """The last heartbeat of its host did not show the run."""
    story.insert(50)
    story.start(50, shard=33)
    xid = story.rescue(33)
    if deaths[1]:
        story.change(50, attempt=(0, 0), deaths=deaths, by=KEEPER, xid=xid)
    story.finish(story.start(50))
    story.over(50, deaths=deaths[1])
    assert (findings(story.history) == []) is excused


def test_a_time_of_day_is_brought_onto_the_monotonic_clock_by_the_closest_reading() -> None:
    clocks = [(1_000, 50_000), (2_000, 51_000), (3_000, 92_000)]  # the time of day was set on by 40 µs
    assert monotonic(clocks, 50_010) == 1_010
    assert monotonic(clocks, 51_400) == 2_400
    assert monotonic(clocks, 92_005) == 3_005


def test_a_history_is_read_back_as_it_was_written(story: Story, tmp_path: Any) -> None:
    import msgspec

    story.end.clocks.append((0, 0))
    for name, lines in (
        ("clients", story.said), ("handlers", story.ran), ("audit", story.wrote), ("faults", story.faults),
    ):  # fmt: skip
        (tmp_path / f"{name}.jsonl").write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    (tmp_path / END).write_bytes(msgspec.json.encode(story.end))
    found = read(tmp_path)
    assert findings(found) == []
    assert found.runs == story.history.runs
    assert found.wrote == story.history.wrote


@pytest.mark.parametrize("late", [True, False])
def test_a_run_that_began_without_its_lease_costs_no_attempt_and_one_with_it_does(story: Story, late: bool) -> None:
    """A suspended worker had claimed the job; when it goes on, it starts it before it hears that it was rescued."""
    story.insert(60)
    story.write("shard", "insert", shard=33)
    story.faults.append(Fault(at=0, until=1 << 60, what="suspend worker", pids=[1000 + 33]))
    if late:
        story.rescue(33)
    story.finish(story.start(60, shard=33))
    if not late:
        story.rescue(33)
    story.finish(story.start(60))
    story.over(60)
    if late:
        story.finish(story.start(60, shard=33))
    assert {finding.rule for finding in findings(story.history)} == (set() if late else {"miscounted"})
