"""Memory that runs out in one worker costs that worker's jobs an attempt at most, and nobody else anything."""

from __future__ import annotations

import resource

import psutil

from tests.fix_master import World, lives, until
from tests.fix_memory import MemoryCgroup

MEGABYTE = 1 << 20
GULPS = """
import msgspec
import wqcore
from world_handlers import note

@wqcore.kind("gulp", max_attempts=1, timeout_s=60)
class Gulp(msgspec.Struct):
    mb: int

@wqcore.handler
async def gulp(args: Gulp, job: wqcore.Job) -> None:
    note("start", job)
    held = []
    for _ in range(args.mb):
        held.append(b"x" * (1 << 20))
    note("end", job)
"""


def begin(world: World) -> tuple[psutil.Process, list[psutil.Process]]:
    """A master with two workers; it, and all of its tree."""
    (world.folder / "gulp_handlers.py").write_text(GULPS)
    world.start(
        world.configure(
            process={"handlers": ["world_handlers", "gulp_handlers"]},
            queues__default={"workers": 10},
            queues__other={"workers": 10},
        )
    )
    until(lambda: world.scalar("select count(shard) from wqcore.slot") == 32, "both queues are owned")
    master = psutil.Process(world.masters[0].pid)
    return master, [master, *master.children()]


def pid_of(world: World, job: int) -> int:
    """The process that runs a job."""
    return next(pid for what, id_, _, pid, _ in world.notes() if what == "start" and id_ == job)


def test_of_a_tree_that_hits_the_limit_of_its_container_only_the_worker_that_took_the_memory_dies(
    memory_cgroup: MemoryCgroup, world: World
) -> None:
    _, tree = begin(world)
    memory_cgroup.limit(250 * MEGABYTE)
    memory_cgroup.put(*(process.pid for process in tree))
    (job,) = world.insert("gulp", 1, {"mb": 2000}, max_attempts=1)
    until(lambda: world.outcomes() == {"discarded": 1}, "the job has its outcome", 40)
    assert "worker died (signal 9)" in world.scalar("select errors::text from wqcore.history where id = %s", job)
    assert [process.pid for process in tree if not lives(process)] == [pid_of(world, job)]
    world.insert("nap", 30)
    until(lambda: world.outcomes() == {"discarded": 1, "completed": 30}, "a replacement works")
    assert len(world.workers()) == 2


def test_an_allocation_that_fails_is_an_error_of_its_job_and_the_worker_goes_on(world: World) -> None:
    _, tree = begin(world)
    for process in world.workers():
        most = process.memory_info().vms + 300 * MEGABYTE
        process.rlimit(resource.RLIMIT_AS, (most, most))
    (job,) = world.insert("gulp", 1, {"mb": 2000}, max_attempts=1)
    until(lambda: world.outcomes() == {"discarded": 1}, "the job has its outcome", 40)
    assert "MemoryError" in world.scalar("select errors::text from wqcore.history where id = %s", job)
    world.insert("nap", 30)
    until(lambda: world.outcomes() == {"discarded": 1, "completed": 30}, "the same worker works")
    assert all(map(lives, tree))
