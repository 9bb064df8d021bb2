"""Beside an old snapshot, an idle writer or readers, and before a million scheduled jobs, a turn visits as few pages as ever.

What the database may not remove, a turn must not walk over. Pages are counted, not seconds; `python -m bench` has the
same neighbours as shapes, with rates.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from tests.db.test_plans_pinned import _TYPES, _literal
from tests.db.test_protocol_turns import NewShard, lanes_of
from tests.fix_pg import Fresh
from wqcore import clock
from wqcore.db.connect import TURN_SETTINGS, BigIntArray
from wqcore.line.lanes import Lanes
from wqcore.line.settle import Outcomes
from wqcore.line.turn import Protocol, _lanes

JOBS, BATCH = 20_000, 500
SCHEDULED = 1_000_000
READERS = 4

Beside = Callable[[Fresh], Any]


@contextmanager
def nobody(database: Fresh) -> Iterator[None]:
    yield


@contextmanager
def old_snapshot(database: Fresh) -> Iterator[None]:
    """A snapshot from before the first job was claimed."""
    with psycopg.connect(database.dsn) as conn:
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        conn.execute("select count(*) from pg_class")
        yield
        conn.rollback()


@contextmanager
def idle_writer(database: Fresh) -> Iterator[None]:
    """A transaction that has written, and does nothing more."""
    with psycopg.connect(database.dsn) as conn:
        conn.execute("create table elsewhere (n integer)")
        yield
        conn.rollback()


@contextmanager
def readers(database: Fresh) -> Iterator[None]:
    """Each scans the table of jobs in one snapshot, for as long as it lasts."""
    over, problems = threading.Event(), []

    def read() -> None:
        try:
            with psycopg.connect(database.dsn) as conn:
                conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
                while not over.is_set():
                    conn.execute(f'select count(*) from "{database.schema}".job')
                    over.wait(0.05)  # the pace of a dashboard
        except psycopg.Error as error:
            problems.append(error)

    threads = [threading.Thread(target=read) for _ in range(READERS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert problems == []


def add_jobs(database: Fresh, count: int, run_at: str = "null") -> None:
    database.sql(
        "insert into {s}.job (queue, slot, kind, args, run_at) "
        f"select 'default', n %% 4, 'k', '{{{{}}}}', {run_at} from generate_series(1, %s) n", count,
    )  # fmt: skip


def visited(database: Fresh, name: str, lanes: Lanes, **more: Any) -> int:
    """How many pages a statement of shard 1 looks at, as the server counts them; what it does is undone."""
    params = {"shard": 1, "queue": "default", "exclude": BigIntArray([]), "busy_keys": [], **_lanes(lanes)} | more
    params.setdefault("due_floor_us", lanes.due_floor_us)
    text, values = database.statements[name].decode(), []
    types = []
    cursor = psycopg.ClientCursor(database.conn)
    for parameter, value in params.items():
        if f"%({parameter})s" in text:
            types.append(_TYPES.get(parameter, "bigint[]"))
            values.append(_literal(cursor, value))
            text = text.replace(f"%({parameter})s", f"${len(values)}")
    cursor.execute(TURN_SETTINGS.encode())
    cursor.execute(f"prepare it ({', '.join(types)}) as {text.replace('%%', '%')}".encode())
    try:
        with database.conn.transaction(force_rollback=True):
            cursor.execute(f"explain (analyze, buffers, format json) execute it ({', '.join(values)})".encode())
            row = cursor.fetchone()
        assert row is not None
        plan = row[0][0]["Plan"]
        return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
    finally:
        cursor.execute(b"deallocate it")


def of_a_turn(database: Fresh, lanes: Lanes) -> int:
    """Pages of a turn that claims a few jobs."""
    return visited(
        database, "turn", lanes, durable=True, keep_hours=0.0, done_ids=BigIntArray([]), done_revisions=BigIntArray([]),
        done_ago_us=BigIntArray([]), n=20, turn=clock.monotonic_ns(), since=clock.monotonic_ns(), held=BigIntArray([]),
        changed=False,
    )  # fmt: skip


def of_a_look(database: Fresh, lanes: Lanes) -> int:
    """Pages of a look."""
    above, below = lanes.gaps()
    return visited(
        database, "peek", lanes, slots=BigIntArray(lanes.slots), gap_above=BigIntArray(above), gap_below=BigIntArray(below),
        floor=lanes.floor,
    )  # fmt: skip


async def drain(database: Fresh, shard: Protocol, lanes: Lanes, jobs: int) -> None:
    """Runs so many jobs: each turn acknowledges what the last one has claimed; and looks, as a shard does."""
    done = Outcomes()
    for n in range(jobs // BATCH + 1):
        limit = BATCH if n < jobs // BATCH else 0
        turned = await shard.turn(done, lanes, limit=limit, held=[], exclude=[], busy_keys=[], changed=True)
        done = Outcomes()
        if limit:
            lanes.took(turned.rows, limit)
        assert len(turned.rows) == limit
        for row in turned.rows:
            done.done.append(row)
            done.done_began.append(clock.monotonic())
        if n % 5 == 0:
            look = await shard.look(lanes, [])
            lanes.look(look.sequence, look.oldest_xid, look.next_xid, late=look.late, now_us=look.now_us)


@pytest.mark.parametrize("beside", [nobody, old_snapshot, idle_writer, readers])
async def test_a_turn_visits_no_more_pages_after_twenty_thousand_jobs_beside(
    database: Fresh, new_shard: NewShard, beside: Beside
) -> None:
    shard, lanes = await new_shard(1), lanes_of()
    with beside(database):
        add_jobs(database, JOBS + 2 * BATCH)
        await drain(database, shard, lanes, BATCH)
        turn, look = of_a_turn(database, lanes), of_a_look(database, lanes)
        await drain(database, shard, lanes, JOBS)
        print(f"{beside.__name__}: turn {turn} → {of_a_turn(database, lanes)}, look {look} → {of_a_look(database, lanes)}")
        assert of_a_turn(database, lanes) <= 1.5 * turn
        if beside is idle_writer:
            # it may have drawn ids before its last statement: whatever lies behind the cursors is looked through, and
            # looks that take long are spaced out
            return
        assert of_a_look(database, lanes) <= 1.5 * look
        if beside is not nobody:
            assert of_a_turn(database, lanes_of()) > 5 * turn, "there was nothing to walk over, so this shows nothing"


async def test_a_million_scheduled_jobs_are_not_in_the_way_of_those_that_are_ready(
    database: Fresh, new_shard: NewShard
) -> None:
    await new_shard(1)
    add_jobs(database, 100)
    lanes = lanes_of()
    turn, look = of_a_turn(database, lanes), of_a_look(database, lanes)
    add_jobs(database, SCHEDULED, "now() + interval '1 hour' + n * interval '1 second'")
    print(f"turn {turn} → {of_a_turn(database, lanes)}, look {look} → {of_a_look(database, lanes)}")
    deeper = 3 * len(lanes.slots)  # an index of a million has two more levels, and each slot begins with its own page
    assert of_a_turn(database, lanes) <= turn + deeper
    assert of_a_look(database, lanes) <= look + 4 * deeper  # four of its questions are about times
