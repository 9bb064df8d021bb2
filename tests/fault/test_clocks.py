"""One master's host is an hour ahead and another's an hour behind: times of jobs and of schedules are the database's."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable

import pytest

from tests.fix_faketime import OFF_S, SITECUSTOMIZE
from tests.fix_master import World, ready, until

TIMED = """
import datetime as dt, os, time
import msgspec
import wqcore
from world_handlers import note

@wqcore.kind("again", max_attempts=5, timeout_s=60, backoff=lambda attempt: 0.3)
class Again(msgspec.Struct):
    until: dt.datetime

@wqcore.handler
async def again(args: Again, job: wqcore.Job) -> None:
    '''Fails, fails until a time of the database that has passed, snoozes until a later one, and is done.'''
    seen = f"{os.environ['WQ_TEST_JOURNAL']}.{job.id}"
    with open(seen, "a+b") as file:
        file.write(b".")
        runs = file.tell()
    with open(f"{os.environ['WQ_TEST_JOURNAL']}.clocks", "a") as file:
        file.write(f"{os.getpid()} {time.time()}\\n")
    note("start", job)
    if runs == 1:
        raise ValueError("by the backoff")
    if runs == 2:
        raise wqcore.Retry("at a time", at=args.until - dt.timedelta(minutes=10))
    if runs == 3:
        raise wqcore.Snooze(until=args.until)
"""
EACH = 32


def worker_of(world: World, number: int) -> int:
    (worker,) = world.workers(number)
    return worker.pid


def test_masters_whose_clocks_are_two_hours_apart_run_everything_at_the_database_s_time(
    world: World, faketime: Callable[[str], dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (world.folder / "timed_handlers.py").write_text(TIMED)
    (world.folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    config = world.configure(
        process={"handlers": ["world_handlers", "timed_handlers"], "dead_after_s": 2.0, "beat_interval_s": 0.5},
        schedules__tick={"kind": "nap", "every_s": 1.0},
    )
    for offset in ("+1h", "-1h"):
        with monkeypatch.context() as patch:
            for name, value in faketime(offset).items():
                patch.setenv(name, value)
            world.start(config)
    ready(world, shards=2)
    shards = world.conn.execute("select id from wqcore.shard order by id").fetchall()

    def insert(kind: str, run_at: str, args: str = "'{}'") -> set[int]:
        rows = world.conn.execute(
            "insert into wqcore.job (queue, slot, kind, args, max_attempts, run_at) "
            f"select 'default', n %% 16, %s, {args}, 5, {run_at} from generate_series(1, %s) n returning id", (kind, EACH),
        )  # fmt: skip
        return {id_ for (id_,) in rows}

    later = insert("nap", "now() + interval '30 minutes'")
    past = insert("nap", "now() - interval '30 minutes'")
    soon = insert("nap", "now() + interval '1 second'")
    again = insert("again", "null", "json_build_object('until', now() + interval '3 seconds')")
    world.conn.execute("select pg_notify(channel, 'due') from wqcore.queue")
    ended = "select count(*) from wqcore.history where outcome = 'completed' and id = any(%s)"
    until(lambda: world.scalar(ended, [*past, *soon, *again]) == 3 * EACH, "what is due by the database's clock has run", 30)
    assert world.scalar("select count(*) from wqcore.jobs where state = 'scheduled' and id = any(%s)", [*later]) == EACH
    assert not later & world.runs().keys()
    assert {world.runs()[id_] for id_ in past | soon} == {1}
    assert {world.runs()[id_] for id_ in again} == {4}
    clocks = dict(map(str.split, (world.folder / "journal.clocks").read_text().splitlines()))
    off = {int(pid): round((float(at) - time.time()) / OFF_S) for pid, at in clocks.items()}
    assert off == {worker_of(world, 0): 1, worker_of(world, 1): -1}, "not both hosts took part, with clocks that are wrong"
    early = (
        "select count(*) from wqcore.history where kind = 'again' and finished_at < (args ->> 'until')::timestamptz"
    )
    assert world.scalar(early) == 0
    until(lambda: len(ticks(world)) >= 5, "the schedule ticks")
    found = ticks(world)
    assert len({tick for tick, _ in found}) == len(found), "a tick has made two jobs"
    assert max(abs((made - tick).total_seconds()) for tick, made in found) < 600
    assert world.conn.execute("select id from wqcore.shard order by id").fetchall() == shards, "nobody was thought dead"
    assert "Traceback" not in world.log(0) + world.log(1)


def ticks(world: World) -> list[tuple[dt.datetime, dt.datetime]]:
    """Each job of the schedule: the tick that it is for, and when it was inserted by the database's clock."""
    return world.conn.execute(
        "select (metadata ->> 'tick')::timestamptz, created_at from wqcore.jobs where metadata ->> 'schedule' = 'tick'"
    ).fetchall()
