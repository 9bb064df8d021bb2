"""A short campaign: two masters lose workers and connections at random, and every job must end exactly once.

The seed is printed; `WQ_TEST_SEED=… pytest tests/fault/test_campaign.py` repeats the choices.
"""

from __future__ import annotations

import os
import random
import signal
import time

import psutil

from tests.fix_master import World, ready, until

JOBS = 6000
SECONDS = 12.0
"""How long faults are injected: the length of the fault, not of a wait."""


def test_workers_and_connections_that_die_at_random_lose_and_repeat_nothing(world: World) -> None:
    seed = int(os.environ.get("WQ_TEST_SEED", random.randrange(10**6)))
    print(f"seed {seed}")
    choose = random.Random(seed)
    config = world.configure(
        process={"dead_after_s": 3.0, "beat_interval_s": 0.5, "deaths_max": 100},
        queues__default={"workers": 40, "processes": 2},
    )
    world.start(config)
    ready(world, 2)
    jobs = world.insert("nap", JOBS, {"s": 0.05}, max_attempts=100)
    world.start(config)
    kills = 0
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        time.sleep(choose.uniform(0.2, 0.8))
        if choose.random() < 0.3:
            world.conn.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where datname = current_database() and application_name like 'wqcore%%' order by random() limit 2"
            )
            continue
        workers = [worker for master in (0, 1) for worker in world.workers(master)]
        if workers:
            try:
                os.kill(choose.choice(workers).pid, signal.SIGKILL)
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue
            kills += 1
    until(lambda: not world.scalar("select count(*) from wqcore.job"), "the queue is drained", 60)
    assert kills > 3
    assert world.outcomes() == {"completed": len(jobs)}
    assert world.scalar("select count(distinct id) from wqcore.history") == len(jobs)
    # a job's attempts are its deaths and the run that completed it: nobody was charged for what had not started
    assert world.scalar("select count(*) from wqcore.history where attempt <> deaths + 1") == 0
    runs = world.runs()
    attempts = dict(world.conn.execute("select id, attempt from wqcore.history").fetchall())
    assert [id_ for id_, attempt in attempts.items() if runs[id_] > attempt] == []
    assert "Traceback" not in world.log(0) + world.log(1)
