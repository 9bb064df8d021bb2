"""The person on call and real workers: the live stack of one that is blocked, who may not be asked, and a drain from afar."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest

from tests.fix_master import World, lives, ready, until
from wqcore.errors import NotInspectable
from wqcore.proc.stacks import stacks

DEEP = """
@wqcore.kind("block", max_attempts=1, timeout_s=60)
class Block(msgspec.Struct):
    s: float

@wqcore.handler
async def block(args: Block, job: wqcore.Job) -> None:
    note("start", job)
    time.sleep(args.s)

@wqcore.kind("held", max_attempts=1, timeout_s=60)
class Held(msgspec.Struct):
    s: float

def in_c(seconds):
    import ctypes
    ctypes.PyDLL(None).usleep(ctypes.c_uint(int(seconds * 1e6)))  # PyDLL keeps the GIL

@wqcore.handler
async def held(args: Held, job: wqcore.Job) -> None:
    note("start", job)
    in_c(args.s)

@wqcore.kind("churn", max_attempts=1, timeout_s=60)
class Churn(msgspec.Struct):
    pass

def down(n):
    return [n] if n == 0 else (lambda m: down(m))(n - 1)

@wqcore.handler
def churn(args: Churn, job: wqcore.Job) -> None:
    note("start", job)
    while not job.stopping:
        down(60)

@wqcore.kind("gated", max_attempts=5, timeout_s=600)
class Gated(msgspec.Struct):
    gate: str

@wqcore.handler
async def gated(args: Gated, job: wqcore.Job) -> None:
    note("start", job)
    while not os.path.exists(args.gate):
        await asyncio.sleep(0.01)
"""


def write_handlers(world: World) -> None:
    path = world.folder / "world_handlers.py"
    path.write_text(path.read_text() + DEEP)


def pid_of(world: World, job: int) -> int:
    """The worker that has started the job."""
    return int(until(lambda: [pid for what, id_, _, pid, _ in world.notes() if (what, id_) == ("start", job)], "it runs")[0])


def test_a_worker_shows_its_stack_while_its_loop_is_blocked_and_goes_on(world: World) -> None:
    write_handlers(world)
    config = world.configure(process={"loop_stuck_s": 60.0})
    world.start(config)
    ready(world)
    for kind, seen in (("block", "in block"), ("held", "in in_c")):
        [job] = world.insert(kind, args={"s": 3.0})
        pid = pid_of(world, job)
        found = stacks(pid)
        assert found[0].thread == pid
        assert any(seen in line for line in found[0].lines), found
        assert not any("master.py" in line for line in found[0].lines)
        until(lambda job=job: world.scalar("select outcome from wqcore.history where id = %s", job), "it ends")
        assert world.scalar("select outcome from wqcore.history where id = %s", job) == "completed"
    assert [worker.pid for worker in world.workers()] == [pid]


def test_stacks_of_a_worker_whose_threads_are_busy_do_it_no_harm(world: World) -> None:
    """Reading the stacks of all threads from one of them ended such a process at the 25th time."""
    write_handlers(world)
    world.start(world.configure())
    ready(world)
    jobs = world.insert("churn", 3)
    pid = pid_of(world, jobs[0])
    until(lambda: len(world.runs()) == 3, "three threads are busy")
    seen = set()
    for _ in range(40):
        for thread in stacks(pid):
            seen |= {"down" for line in thread.lines if "in down" in line}
    assert seen == {"down"}
    assert [worker.pid for worker in world.workers()] == [pid]
    assert world.scalar("select count(*) from wqcore.history") == 0


def test_only_workers_and_keepers_are_asked(world: World) -> None:
    world.start(world.configure())
    ready(world)
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        for pid in (bystander.pid, world.masters[0].pid):
            with pytest.raises(NotInspectable, match="no worker or keeper"):
                stacks(pid)
        with pytest.raises(NotInspectable, match="no process"):
            stacks(2**22 + 1)
        assert bystander.poll() is None
        assert world.masters[0].poll() is None
    finally:
        bystander.kill()
        bystander.wait()
    [worker] = world.workers()
    os.kill(worker.pid, signal.SIGSTOP)
    until(lambda: psutil.Process(worker.pid).status() == psutil.STATUS_STOPPED, "it is stopped")
    with pytest.raises(NotInspectable, match="kill -CONT"):
        stacks(worker.pid)
    os.kill(worker.pid, signal.SIGCONT)
    keeper = next(child for child in psutil.Process(world.masters[0].pid).children() if child.pid != worker.pid)
    assert any("entry.py" in line for line in stacks(keeper.pid)[0].lines)


def test_a_master_is_shown_with_what_it_runs_and_drains_when_the_database_is_told_so(world: World) -> None:
    write_handlers(world)
    gate = world.folder / "gate"
    config = world.configure(process={"drain_timeout_s": 600.0, "beat_interval_s": 0.2})
    master = world.start(config)
    ready(world)
    [job] = world.insert("gated", args={"gate": str(gate)})
    pid = pid_of(world, job)

    def shown() -> bool:
        [found] = json.loads(world.cli(config, "workers", "list", "--json").stdout)
        [worker] = found["workers"]
        assert (found["pid"], worker["pid"], worker["queue"], worker["seats"]) == (master.pid, pid, "default", 20)
        return [each["id"] for each in worker["jobs"]] == [job] and bool(worker["memory_bytes"])

    until(shown, "its job and its memory are shown")
    stack = json.loads(world.cli(config, "workers", "stack", str(pid), "--json").stdout)
    assert [each["id"] for each in stack["jobs"]] == [job]
    # TERM already drains it: the request must not count as a second TERM, which would cancel what runs
    master.send_signal(signal.SIGTERM)
    late = world.cli(config, "workers", "drain", str(master.pid), "--wait", "--timeout", "0.1s")
    assert (late.returncode, late.stdout.split(":")[0]) == (6, "still draining")
    until(
        lambda: world.scalar("select beat_at > drain_asked_at + interval '1 second' from wqcore.process"),
        "the keeper has read the request at several heartbeats",
    )
    gate.touch()
    assert master.wait(30) == 0
    assert world.scalar("select outcome || attempt from wqcore.history") == "completed1"
    assert world.runs() == {job: 1}


def test_a_request_alone_drains_a_master(world: World) -> None:
    config = world.configure(process={"beat_interval_s": 0.2})
    master = world.start(config)
    ready(world)
    worker = world.workers()[0]
    assert world.cli(config, "workers", "drain", world.scalar("select left(id::text, 8) from wqcore.process")).returncode == 0
    assert master.wait(30) == 0
    until(lambda: not lives(worker), "its worker has left")
    assert world.scalar("select count(*) from wqcore.process") == 0
