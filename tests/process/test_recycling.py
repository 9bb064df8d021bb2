"""Workers over a limit of memory, age or jobs are replaced one at a time, new before old, and no job pays for it."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest

from tests.fix_master import World, lives, ready, until
from wqcore.launch import recycling
from wqcore.proc.recycling import MEMORY_AGE_MIN_S, Recycling
from wqcore.settings import Process

MEGABYTE = 1 << 20
LEAKY = """
import os, pathlib
import msgspec
import wqcore
import wqcore.proc.memory, wqcore.proc.recycling
from world_handlers import note

# the test cannot wait for the times that a production worker is given
wqcore.proc.memory.SAMPLE_EVERY_S = 0.1
wqcore.proc.recycling.MEMORY_AGE_MIN_S = 0.5

kept = []

@wqcore.kind("leak", max_attempts=1)
class Leak(msgspec.Struct):
    mb: int
    keep: bool = True

@wqcore.handler
async def leak(args: Leak, job: wqcore.Job) -> None:
    note("start", job)
    held = bytearray(os.urandom(1 << 20) * args.mb)
    if args.keep:
        kept.append(held)
    note("end", job)

@wqcore.on_start
async def hook() -> None:
    if pathlib.Path(__file__).with_name("fail").exists():
        raise RuntimeError("no start")
"""


def recycled(world: World, **process: Any) -> None:
    (world.folder / "leaky_handlers.py").write_text(LEAKY)
    world.start(
        world.configure(
            process={"handlers": ["world_handlers", "leaky_handlers"], "drain_timeout_s": 30.0} | process,
            queues__default={"workers": 8, "processes": 2},
        )
    )
    ready(world, 2)


def test_limits_say_why_a_worker_is_due() -> None:
    limits = Recycling(memory_bytes=100 * MEGABYTE, after_s=60.0, after_jobs=1000)
    assert limits.due(age_s=59.0, jobs=999, memory_bytes=100 * MEGABYTE) is None
    assert "memory_soft_mb = 100" in (limits.due(age_s=31.0, jobs=0, memory_bytes=101 * MEGABYTE) or "")
    assert limits.due(age_s=MEMORY_AGE_MIN_S - 1, jobs=0, memory_bytes=101 * MEGABYTE) is None
    assert "recycle_after_s = 60" in (limits.due(age_s=60.0, jobs=0, memory_bytes=0) or "")
    assert "recycle_after_jobs = 1000" in (limits.due(age_s=0.0, jobs=1000, memory_bytes=0) or "")
    assert Recycling().due(age_s=1e9, jobs=10**9, memory_bytes=1 << 50) is None


def test_a_worker_over_its_soft_limit_drains_and_is_replaced_and_its_neighbour_is_not(world: World) -> None:
    recycled(world, memory_soft_mb=150)
    before = {worker.pid for worker in world.workers()}
    passing = world.insert("leak", 2, {"mb": 200, "keep": False})
    until(lambda: len(world.outcomes()) and world.outcomes()["completed"] == 2, "memory that is given back is no reason")
    long = world.insert("nap", 4, {"s": 1.5})
    until(lambda: set(long) <= set(world.runs()), "four jobs run")
    (leak,) = world.insert("leak", 1, {"mb": 200})
    leaked_at = time.monotonic()
    until(lambda: "starting its replacement" in world.log(), "the limit is noticed")
    (pid,) = {pid for _, id_, _, pid, _ in world.notes() if id_ == leak}
    until(lambda: len({worker.pid for worker in world.workers()} - before) == 1, "a replacement starts")
    assert pid in {worker.pid for worker in world.workers()}
    until(lambda: pid not in {worker.pid for worker in world.workers()}, "the old one has drained")
    print(f"over the soft limit: drained and replaced {time.monotonic() - leaked_at:.1f} s after the leak (jobs of 1.5 s)")
    assert len({worker.pid for worker in world.workers()} & before) == 1
    assert f"(pid {pid}) holds 2" in world.log()
    until(lambda: world.outcomes() == {"completed": 7}, "all are completed")
    assert set(world.runs().values()) == {1}
    assert set(passing) <= set(world.runs())
    world.insert("nap", 20)
    until(lambda: world.outcomes() == {"completed": 27}, "both work")
    assert "worker died" not in world.log()


def test_under_load_workers_are_recycled_by_jobs_one_at_a_time_and_no_job_is_charged_or_run_twice(world: World) -> None:
    recycled(world, recycle_after_jobs=400)
    first = {worker.pid for worker in world.workers()}
    most = 0

    def settled() -> bool:
        nonlocal most
        most = max(most, len([worker for worker in world.workers() if lives(worker)]))
        return bool(world.outcomes().get("completed") == 3000)

    world.insert("nap", 3000, {"s": 0.005})
    until(settled, "all are completed", 60)
    until(lambda: not first & {worker.pid for worker in world.workers()}, "nobody of the first is left")
    assert most <= 3
    assert world.scalar("select count(*) from wqcore.history where attempt <> 1 or deaths <> 0") == 0
    assert set(world.runs().values()) == {1}
    assert "worker died" not in world.log()
    assert world.log().count("starting its replacement") >= 2


def test_an_old_worker_goes_on_while_its_replacement_cannot_start_and_a_drain_in_between_ends_with_0(world: World) -> None:
    recycled(world, recycle_after_s=2.0)
    before = {worker.pid for worker in world.workers()}
    (world.folder / "fail").touch()
    until(lambda: world.log().count("no start") >= 2, "a replacement has failed twice")
    assert before <= {worker.pid for worker in world.workers()}
    world.insert("nap", 20)
    until(lambda: world.outcomes() == {"completed": 20}, "the old ones work")
    (world.folder / "fail").unlink()
    long = world.insert("nap", 8, {"s": 2.0})
    until(lambda: set(long) & set(world.runs()), "long jobs run")
    until(lambda: "its replacement works, so it drains" in world.log(), "one drains")
    world.masters[0].send_signal(signal.SIGTERM)
    assert world.masters[0].wait(30) == 0
    # TERM for the master was the second for the one that drained already, and must not have hurried it
    assert world.outcomes() == {"completed": len(world.runs())}
    assert set(world.runs().values()) == {1}
    assert world.scalar("select count(*) from wqcore.history where attempt <> 1 or deaths <> 0") == 0
    for table in ("shard", "claim", "process"):
        assert world.scalar(f"select count(*) from wqcore.{table}") == 0


@pytest.mark.parametrize("key", ["memory_soft_mb", "recycle_after_s", "recycle_after_jobs"])
def test_nothing_is_recycled_unless_a_limit_is_set(key: str) -> None:
    assert recycling(Process()) == Recycling()
    assert recycling(Process(**{key: 7})) != Recycling()
