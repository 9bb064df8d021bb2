"""Workers and masters that are killed with 9: every job runs again, none twice at once, and only what had started is charged.

How long recovery took is printed (`pytest -rP`), not judged: a busy machine is no defect.
"""

from __future__ import annotations

import signal
import time

import psutil
import pytest

from tests.fix_master import World, lives, ready, send, until

LOCKED = """
import asyncio, fcntl, os
import msgspec
import wqcore
from world_handlers import note

def alone(job):
    '''Takes a lock that the kernel gives up when this process ends, and notes when another run of the job has it.

    Gives its descriptor, and whether the job has run before.'''
    path = f"{os.environ['WQ_TEST_JOURNAL']}.{job.id}"
    before = os.path.exists(path)
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        note("overlap", job)
    return fd, before

@wqcore.kind("first", max_attempts=5, timeout_s=60)
class First(msgspec.Struct):
    s: float = 600.0

@wqcore.handler
async def first(args: First, job: wqcore.Job) -> None:
    '''Its first run lasts, the others do not.'''
    fd, before = alone(job)
    try:
        note("start", job)
        await asyncio.sleep(0.05 if before else args.s)
        note("end", job)
    finally:
        os.close(fd)

@wqcore.kind("exits", max_attempts=5)
class Exits(msgspec.Struct):
    code: int

@wqcore.handler
async def exits(args: Exits, job: wqcore.Job) -> None:
    note("start", job)
    if job.attempt == 1:
        os._exit(args.code)

@wqcore.kind("quits", max_attempts=5, timeout_s=60)
class Quits(msgspec.Struct):
    pass

@wqcore.handler
async def quits(args: Quits, job: wqcore.Job) -> None:
    note("start", job)
    try:
        await asyncio.sleep(600)
    except asyncio.CancelledError:
        os._exit(0)
"""


@pytest.fixture
def locked(world: World) -> World:
    (world.folder / "locked_handlers.py").write_text(LOCKED)
    return world


HANDLERS = {"handlers": ["world_handlers", "locked_handlers"]}


def test_kill_9_a_worker_with_20_running_and_500_prefetched_jobs_charges_the_20_and_runs_all(locked: World) -> None:
    locked.start(locked.configure(process=HANDLERS, queues__default={"workers": 20, "prefetch_s": 10.0}))
    ready(locked)
    locked.insert("nap", 1000)  # they teach the shard a rate, so that it prefetches
    until(lambda: locked.outcomes().get("completed") == 1000, "the quick jobs are done")
    running = set(locked.insert("first", 20))
    until(lambda: running <= set(locked.runs()), "20 jobs run")
    waiting = set(locked.insert("nap", 500))
    until(
        lambda: (locked.scalar("select cardinality(ids) from wqcore.claim order by turn desc limit 1") or 0) >= 520,
        "500 more are claimed",
    )
    (worker,) = locked.workers()
    killed = time.monotonic()
    send(worker, signal.SIGKILL)
    until(lambda: locked.outcomes().get("completed") == 1520, "all are completed")
    again = [at - killed for what, id_, _, pid, at in locked.notes() if what == "start" and pid != worker.pid]
    print(f"worker killed: a replacement's first job after {min(again) * 1000:.0f} ms, ", end="")
    print(f"the last of 520 started after {max(again) * 1000:.0f} ms")
    rows = locked.conn.execute("select id, attempt, deaths from wqcore.history where id = any(%s)", [[*running, *waiting]])
    ended = {id_: (attempt, deaths) for id_, attempt, deaths in rows}
    assert {ended[id_] for id_ in running} == {(2, 1)}
    assert {ended[id_] for id_ in waiting} == {(1, 0)}
    runs = locked.runs()
    assert {runs[id_] for id_ in running} == {2}
    assert {runs[id_] for id_ in waiting} == {1}
    assert len(locked.workers()) == 1


def test_kill_9_the_master_takes_its_tree_along_and_the_next_runs_no_job_twice_at_once(locked: World) -> None:
    config = locked.configure(
        process=HANDLERS | {"dead_after_s": 2.0, "beat_interval_s": 0.5},
        queues__default={"workers": 60, "processes": 2},
    )
    master = locked.start(config)
    ready(locked, 2)
    keys = [{"serial_key": f"key-{number}", "slot": number % 16} for number in range(20)]
    running = [locked.insert("first", 1, **key)[0] for key in keys]
    until(lambda: len(locked.runs()) == 20, "20 jobs run")
    waiting = [locked.insert("nap", 1, **key)[0] for key in keys]  # for those that run, whatever seats are free
    tree = psutil.Process(master.pid).children(recursive=True)
    killed = time.monotonic()
    master.kill()
    locked.start(config)
    until(lambda: not any(map(lives, tree)), "no process of its tree lives")
    print(f"master killed: its tree was gone after {(time.monotonic() - killed) * 1000:.0f} ms")
    until(lambda: locked.outcomes().get("completed") == 40, "all jobs are completed", 30)
    print(f"and its jobs were completed by the next after {time.monotonic() - killed:.1f} s (dead_after_s = 2)")
    assert [note for note in locked.notes() if note[0] == "overlap"] == []
    assert locked.scalar("select count(*) from wqcore.job") == 0
    runs = locked.runs()
    assert {runs[id_] for id_ in running} == {2}
    assert {runs[id_] for id_ in waiting} == {1}


@pytest.mark.parametrize("code", [0, 75])
def test_a_handler_that_exits_with_a_code_of_the_engines_own_is_a_death_like_any_other(locked: World, code: int) -> None:
    locked.start(locked.configure(process=HANDLERS))
    ready(locked)
    (job,) = locked.insert("exits", 1, {"code": code})
    locked.insert("first", 3, {"s": 0.0})
    until(lambda: locked.outcomes().get("completed") == 4, "all are completed")
    attempt, deaths, errors = locked.conn.execute(
        "select attempt, deaths, errors::text from wqcore.history where id = %s", [job]
    ).fetchone() or (0, 0, "")
    assert (attempt, deaths) == (2, 1)
    assert f"worker died (exit code {code})" in errors


def test_a_handler_that_exits_with_0_in_a_drain_is_charged_and_its_jobs_are_not_left_claimed(locked: World) -> None:
    master = locked.start(locked.configure(process=HANDLERS | {"drain_timeout_s": 0.2}))
    ready(locked)
    locked.insert("quits", 2)
    until(lambda: len(locked.runs()) == 2, "two jobs run")
    master.send_signal(signal.SIGTERM)
    assert master.wait(30) == 0
    assert locked.conn.execute("select attempt, deaths from wqcore.job").fetchall() == [(1, 1)] * 2
    assert locked.scalar("select count(*) from wqcore.shard") == 0
    assert locked.scalar("select count(*) from wqcore.claim") == 0
