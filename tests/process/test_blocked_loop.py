"""A handler or an import that blocks, also inside C code that never gives the interpreter up, ends in bounded time."""

from __future__ import annotations

import pytest

from tests.fix_master import World, lives, until

FOREVER = "import itertools\nsum(itertools.repeat(0))\n"
"""A loop in C that looks at no signal."""

BLOCKERS = """
import itertools, time
import msgspec
import wqcore
from world_handlers import note

def sleeping():
    time.sleep(600)

def counting():
    sum(itertools.repeat(0))

@wqcore.kind("stand", max_attempts=1, timeout_s=60)
class Stand(msgspec.Struct):
    how: str

@wqcore.handler
async def stand(args: Stand, job: wqcore.Job) -> None:
    note("start", job)
    globals()[args.how]()

@wqcore.kind("calmly", queue="calm", max_attempts=1)
class Calmly(msgspec.Struct):
    pass

@wqcore.handler
async def calmly(args: Calmly, job: wqcore.Job) -> None:
    note("start", job)
"""


@pytest.mark.parametrize("how", ["sleeping", "counting"])
def test_a_loop_that_stands_is_dumped_and_replaced_and_other_queues_go_on(world: World, how: str) -> None:
    (world.folder / "block_handlers.py").write_text(BLOCKERS)
    world.start(
        world.configure(
            process={"handlers": ["world_handlers", "block_handlers"], "loop_stuck_s": 1.0},
            queues__default={"workers": 5},
            queues__calm={"workers": 5},
        )
    )
    until(lambda: world.scalar("select count(shard) from wqcore.slot") == 32, "both queues are owned")
    napping = world.insert("nap", 2, {"s": 30.0})
    until(lambda: len(world.runs()) == 2, "two jobs run beside it")
    stuck = {worker.pid: worker for worker in world.workers()}
    (job,) = world.insert("stand", 1, {"how": how}, max_attempts=1)
    until(lambda: job in world.runs(), "the loop stands")
    pid = next(pid for _, id_, _, pid, _ in world.notes() if id_ == job)
    calm = world.conn.execute(
        "insert into wqcore.job (queue, slot, kind, args) "
        "select 'calm', n % 16, 'calmly', '{}' from generate_series(1, 20) n returning id"
    ).fetchall()
    until(lambda: world.outcomes().get("completed") == len(calm), "the other queue goes on")
    until(lambda: world.outcomes().get("discarded") == 1, "the job has its outcome")
    assert not lives(stuck[pid])
    log = world.log()
    assert f"job {job} (stand" in log
    assert all(f"job {other} (nap" in log for other in napping)
    assert "Fatal Python error: Aborted" in log
    assert f"in {how}" in log
    assert "loop stuck" in world.scalar("select errors::text from wqcore.history where id = %s", job)
    assert log.count("): worker died") + log.count("): worker killed") == 1
    (bystander,) = {worker.pid for worker in world.workers()} & set(stuck)
    assert bystander != pid
    until(lambda: len(world.workers()) == 2, "a replacement is up")


def test_an_import_that_never_gives_the_interpreter_up_ends_in_bounded_time_and_is_named(world: World) -> None:
    (world.folder / "world_handlers.py").write_text(FOREVER)
    master = world.start(world.configure(process={"boot_timeout_s": 1.0}))
    assert master.wait(20) == 1
    assert 'world_handlers.py", line 2 in <module>' in world.log()
