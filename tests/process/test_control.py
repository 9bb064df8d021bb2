"""Control over real processes: cancel, pause and progress arrive also when a notification or a worker is lost."""

from __future__ import annotations

import datetime as dt
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

import wqcore
from tests.fix_master import HANDLERS, World, ready, until
from wqcore.control.changes import Changed

TALKER = """
@wqcore.kind("talker", max_attempts=1, timeout_s=60)
class Talker(msgspec.Struct):
    s: float = 1.0

@wqcore.handler
async def talker(args: Talker, job: wqcore.Job) -> None:
    note("start", job)
    end = time.monotonic() + args.s
    said = 0
    while time.monotonic() < end:
        said += 1
        job.progress(0.5, f"{said} times")
        await asyncio.sleep(0.002)
    job.output({"said": said})
"""


@contextmanager
def client(world: World) -> Iterator[wqcore.SyncClient]:
    with wqcore.SyncClient(dsn=world.dsn) as found:
        yield found


def running(world: World, count: int) -> None:
    until(lambda: len(world.runs()) == count, f"{count} jobs run")


def ends(world: World) -> list[int]:
    return [job for what, job, *_ in world.notes() if what == "end"]


# --- cancel -------------------------------------------------------------------------------------------------------------


def test_running_jobs_are_cancelled_over_the_borders_of_processes(world: World) -> None:
    config = world.configure(queues__default={"processes": 2, "workers": 20})
    world.start(config)
    ready(world, 2)
    jobs = world.insert("nap", 12, {"s": 60.0})
    running(world, 12)
    assert len({pid for _, _, _, pid, _ in world.notes()}) == 2
    with client(world) as asking:
        chosen = wqcore.JobFilter(states=["running"])
        assert asking.count(chosen) == 12
        began = time.monotonic()
        assert asking.cancel(chosen, reason="not needed any more") == Changed(cancelling=12)
        found = [asking.wait(job, timeout_s=20) for job in jobs]
        print(f"cancelled after {time.monotonic() - began:.3f} s")
    assert {info.state for info in found} == {"cancelled"}
    assert {info.last_error for info in found} == {"not needed any more"}
    assert ends(world) == []
    until(lambda: not world.scalar("select count(*) from wqcore.cancel_request"), "the requests are answered")


def test_a_cancellation_without_its_notification_is_found_at_the_next_look(world: World) -> None:
    world.start(world.configure())
    ready(world)
    [job] = world.insert("nap", 1, {"s": 60.0})
    running(world, 1)
    world.conn.execute("insert into wqcore.cancel_request (job, queue, reason) values (%s, 'default', 'quietly')", (job,))
    with client(world) as asking:
        found = asking.wait(job, timeout_s=20)
    assert (found.state, found.last_error) == ("cancelled", "quietly")


def test_a_job_whose_worker_is_killed_while_it_is_cancelled_does_not_run_again(world: World) -> None:
    world.start(world.configure())
    ready(world)
    jobs = world.insert("nap", 8, {"s": 60.0})
    running(world, 8)
    worker = world.workers()[0].pid
    with client(world) as asking:
        os.kill(worker, signal.SIGSTOP)
        assert asking.cancel(jobs) == Changed(cancelling=8)
        os.kill(worker, signal.SIGKILL)
        found = [asking.wait(job, timeout_s=40) for job in jobs]
    assert {info.state for info in found} == {"cancelled"}
    assert set(world.runs().values()) == {1}


def test_a_job_that_ends_while_it_is_cancelled_ends_once(world: World) -> None:
    world.start(world.configure())
    ready(world)
    chance = random.Random(7)
    jobs = [world.insert("nap", 1, {"s": chance.random() / 5})[0] for _ in range(300)]
    with client(world) as asking:
        until(world.runs, "some run")
        while asking.count(wqcore.JobFilter(states=["available", "running"])):
            asking.cancel(jobs[:: chance.randrange(1, 9)])
            asking.cancel(wqcore.JobFilter(kinds=["nap"], states=["running"]))
        until(lambda: sum(world.outcomes().values()) == 300, "all have ended")
    assert world.scalar("select count(*) from (select id from wqcore.history group by id having count(*) > 1) twice") == 0
    assert world.scalar("select count(*) from wqcore.job") == 0


def test_a_cancellation_whose_job_nobody_holds_is_carried_out_by_the_keeper(world: World) -> None:
    world.start(world.configure())
    ready(world)
    with client(world) as asking:
        asking.pause("default")
        time.sleep(1.5)  # until every worker has looked; the job would run else, and be cancelled by its worker
        [job] = world.insert("nap")
        world.conn.execute("insert into wqcore.cancel_request (job, queue, reason) values (%s, 'default', 'late')", (job,))
        assert asking.wait(job, timeout_s=30).state == "cancelled"
    assert world.runs() == {}


def test_what_is_deleted_or_rescheduled_behind_a_busy_worker_does_not_run(world: World) -> None:
    world.start(world.configure(queues__default={"workers": 1}))
    ready(world)
    [first] = world.insert("nap", 1, {"s": 1.5})
    running(world, 1)
    gone, moved, kept = (world.insert("nap")[0] for _ in range(3))
    with client(world) as asking:
        done = asking.delete(gone)
        later = asking.reschedule(moved, dt.timedelta(hours=1))
        asking.wait(kept, timeout_s=30)
        asking.wait(first, timeout_s=30)
        if done.changed:
            assert gone not in world.runs()
        if later.changed:
            assert moved not in world.runs()
            assert asking.retry(moved) == Changed(changed=1)
        assert asking.wait(moved, timeout_s=30).state == "completed"


def test_discarded_jobs_come_back_and_run(world: World) -> None:
    world.start(world.configure())
    ready(world)
    with client(world) as asking:
        jobs = world.insert("nap", 50, {"s": "not a number"})
        for job in jobs:
            assert asking.wait(job, timeout_s=30).state == "discarded"
        world.conn.execute("update wqcore.history set args = '{}'")
        assert asking.retry(wqcore.JobFilter(states=["discarded"])) == Changed(changed=50)
        found = [asking.wait(job, timeout_s=30) for job in jobs]
    assert {info.state for info in found} == {"completed"}
    assert {info.attempt for info in found} == {2}
    assert set(world.runs().values()) == {1}


@pytest.mark.parametrize("change", ["reprioritise", "reschedule"])
def test_a_job_that_is_changed_at_the_moment_of_its_claim_never_runs_beside_itself(world: World, change: str) -> None:
    """The change is committed between the snapshot of a turn and its claim: the turn waits for its shard's row there.

    Then the job comes up a second time, among the due ones, while the worker has it.
    """
    world.start(world.configure(queues__default={"poll_interval_s": 60.0}))  # no turn of its own between lock and insert
    ready(world)
    with client(world) as asking, psycopg.connect(world.dsn) as lock:
        lock.execute("select from wqcore.shard for update")
        job = world.insert("nap", 1, {"s": 1.5})[0]
        world.conn.execute("select pg_notify(channel, 'all') from wqcore.queue")
        waits = (
            "select count(*) from pg_stat_activity, wqcore.job where wait_event_type = 'Lock' and datname = current_database() "
            "and query_start > created_at"
        )
        until(lambda: world.scalar(waits), "a turn that has seen the job waits")
        if change == "reprioritise":
            assert asking.reprioritise(job, 9) == Changed(changed=1)
        else:
            assert asking.reschedule(job, dt.timedelta(0)) == Changed(changed=1)
        lock.commit()
        assert asking.wait(job, timeout_s=30).state == "completed"
    times = sorted((at, what) for what, _, _, _, at in world.notes())
    assert [what for _, what in times] == ["start", "end"] * (1 if change == "reprioritise" else 2)
    assert world.outcomes() == {"completed": 1}


# --- progress and outputs -----------------------------------------------------------------------------------------------


def test_progress_is_shown_while_a_job_runs_seldom_written_and_gone_afterwards(world: World) -> None:
    (world.folder / "world_handlers.py").write_text(HANDLERS + TALKER)
    world.start(world.configure())
    ready(world)
    [job] = world.insert("talker", 1, {"s": 4.0})
    before = world.scalar("select xmin::text from wqcore.job")
    with client(world) as asking:
        until(lambda: (info := asking.job(job)) and info.progress == 0.5 and info.progress_note, "progress is shown")
        assert world.scalar("select progress from wqcore.jobs where id = %s", job) == 0.5
        assert world.scalar("select xmin::text from wqcore.job") == before
        said = asking.result(job, timeout_s=30)["said"]
        info = asking.job(job)
        assert info is not None
        assert info.progress is None
    until(lambda: not world.scalar("select count(*) from wqcore.progress"), "the progress is forgotten")
    writes = "select n_tup_ins + n_tup_upd from pg_stat_user_tables where relname = 'progress'"
    until(lambda: world.scalar(writes), "statistics are in")
    assert world.scalar(writes) < said / 10


# --- pause --------------------------------------------------------------------------------------------------------------


def test_a_paused_queue_starts_nothing_and_goes_on_where_it_was(world: World) -> None:
    world.start(world.configure(queues__default={"workers": 2, "processes": 2}))
    ready(world, 2)
    jobs = world.insert("nap", 60, {"s": 0.2})
    until(lambda: len(world.runs()) > 4, "some run")
    with client(world) as asking:
        assert asking.pause() == 1
        _nothing_starts(world)
        assert 0 < len(world.runs()) < 60
        assert asking.count(wqcore.JobFilter(states=["available"])) == 60 - len(world.runs())
        assert asking.resume("default") == 1
        assert {asking.wait(job, timeout_s=60).state for job in jobs} == {"completed"}
    assert set(world.runs().values()) == {1}


def test_a_pause_and_a_resume_by_hand_are_noticed_at_the_next_look(world: World) -> None:
    world.start(world.configure())
    ready(world)
    jobs = world.insert("nap", 200, {"s": 0.3})
    until(lambda: len(world.runs()) > 4, "some run")
    world.conn.execute("update wqcore.queue set paused_at = now()")
    _nothing_starts(world)
    assert 0 < len(world.runs()) < 200
    world.conn.execute("update wqcore.queue set paused_at = null")
    until(lambda: world.outcomes().get("completed") == len(jobs), "all are completed", 60)
    assert set(world.runs().values()) == {1}


def test_sql_pauses_a_queue_before_its_worker_has_started(world: World) -> None:
    config = world.configure()
    assert world.cli(config, "migrate").returncode == 0
    assert world.scalar("select wqcore.pause('default')") == 1
    [job] = world.insert("nap")
    world.start(config)
    ready(world)
    _nothing_starts(world)
    assert world.runs() == {}
    assert world.scalar("select wqcore.resume()") == 1
    until(lambda: job in world.runs(), "it runs")


def _nothing_starts(world: World) -> None:
    """Waits until what ran has ended and nothing is held any more, and then for two more polls."""
    until(lambda: not world.scalar("select sum(cardinality(ids)) from wqcore.claim"), "all was given back")
    before = len(world.runs())
    time.sleep(2.5)
    assert len(world.runs()) == before
