"""Masters and trees that are stopped past the lease: nobody is murdered for it, and late writes change nothing."""

from __future__ import annotations

import signal
from typing import Any

import psutil

from tests.fix_master import World, lives, ready, send, until

TIMES = {"dead_after_s": 2.0, "beat_interval_s": 0.5, "loop_stuck_s": 1.0}
HISTORY = "select id, outcome, attempt, deaths, shard from wqcore.history order by id"


def tree_of(world: World, number: int = 0) -> list[psutil.Process]:
    master = psutil.Process(world.masters[number].pid)
    return [master, *master.children()]


def history(world: World) -> list[tuple[Any, ...]]:
    return world.conn.execute(HISTORY).fetchall()


def test_a_master_stopped_past_the_lease_with_nobody_beside_it_goes_on_with_the_same_workers(world: World) -> None:
    master = world.start(world.configure(process=TIMES))
    ready(world)
    tree = tree_of(world)
    beat = "select beat_at from wqcore.process"
    silent = "select clock_timestamp() - beat_at > interval '3 s' from wqcore.process"
    until(lambda: world.scalar(beat), "it beats")
    send(master, signal.SIGSTOP)
    jobs = world.insert("nap", 40, {"s": 0.1})
    until(lambda: world.outcomes().get("completed") == len(jobs), "its workers work on")
    until(lambda: world.scalar(silent), "the beat has stopped for longer than the lease")
    before = world.scalar(beat)
    send(master, signal.SIGCONT)
    until(lambda: world.scalar(beat) > before, "it beats again")
    world.insert("nap", 20)
    until(lambda: world.outcomes() == {"completed": 60}, "and works")
    assert {process.pid for process in tree} == {process.pid for process in tree_of(world)}
    assert "master was away" in world.log()
    assert "worker died" not in world.log()
    assert set(world.runs().values()) == {1}


def test_a_stopped_master_whose_workers_run_loses_them_to_another_and_fills_its_places_when_it_thaws(world: World) -> None:
    config = world.configure(process=TIMES, queues__default={"workers": 10})
    master = world.start(config)
    world.start(config)
    ready(world, 2)
    old = world.workers(0)
    send(master, signal.SIGSTOP)
    # others judge it by its beat, though its workers live: these find out at their next statement and leave
    until(lambda: not any(map(lives, old)), "its workers have left", 30)
    jobs = world.insert("nap", 60, {"s": 0.05})
    until(lambda: world.outcomes().get("completed") == len(jobs), "the other does the work")
    send(master, signal.SIGCONT)
    until(lambda: world.workers(0), "its places are filled again")
    ready(world, 2)
    world.insert("nap", 60)
    until(lambda: world.outcomes() == {"completed": 120}, "both work")
    assert "fenced" in world.log(0)
    assert "worker died" not in world.log(0)
    assert set(world.runs().values()) == {1}


def test_a_whole_tree_stopped_past_the_lease_beside_another_changes_nothing_when_it_thaws(world: World) -> None:
    config = world.configure(process=TIMES, queues__default={"workers": 20})
    master = world.start(config)
    ready(world)
    jobs = world.insert("nap", 30, {"s": 0.4})
    until(lambda: len(world.runs()) >= 20, "20 jobs run")
    tree = tree_of(world)
    for process in tree:
        send(process, signal.SIGSTOP)
    world.start(config)
    until(lambda: world.outcomes().get("completed") == len(jobs), "the other has run its jobs", 30)
    before = history(world)
    pids = {worker.pid for worker in world.workers(0)}
    for process in reversed(tree):
        send(process, signal.SIGCONT)
    until(lambda: not pids & {worker.pid for worker in world.workers(0)}, "the thawed worker leaves by itself")
    until(lambda: world.workers(0), "it is replaced")
    assert history(world) == before
    assert {outcome for _, outcome, *_ in before} == {"completed"}
    assert world.scalar("select max(deaths) from wqcore.history") == 1
    ready(world, 2)
    assert master.poll() is None
    world.insert("nap", 60)
    until(lambda: world.outcomes() == {"completed": 90}, "both work")
    assert "worker died" not in world.log(0) + world.log(1)
    assert "loop stuck" not in world.log(0)
