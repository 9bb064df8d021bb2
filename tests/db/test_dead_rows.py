"""Beside an old snapshot rows that are gone stay in every index; what the engine reads often must not walk over them.

Rows visited are counted by PostgreSQL itself (idx_tup_read, idx_blks), for the statements as they are sent.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import psycopg
import pytest

from tests.db.test_protocol_turns import add, lanes_of, turn
from tests.fix_pg import Fresh
from wqcore.db.connect import BY_INDEX, AsyncConnection, connect
from wqcore.line.turn import Protocol
from wqcore.upkeep.cancels import cancel_unheld

NewShard = Callable[..., Awaitable[Protocol]]
DEAD = 5_000


@pytest.fixture
def old_snapshot(database: Fresh) -> Iterator[psycopg.Connection[Any]]:
    """A snapshot that is held, so that nothing which is deleted from now on can be removed."""
    with psycopg.connect(database.dsn) as conn:
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        conn.execute("select count(*) from pg_class")
        yield conn


async def visited(database: Fresh, conn: AsyncConnection, act: Callable[[], Awaitable[Any]], index: str) -> int:
    """Index entries that `act` reads on this connection, which are counted when it says so."""

    async def entries() -> int:
        await conn.execute("select pg_stat_force_next_flush()", prepare=False)
        await conn.execute("select 1", prepare=False)
        database.conn.execute("select pg_stat_clear_snapshot()")
        return int(database.one("select idx_tup_read from pg_stat_user_indexes where indexrelname = %s "
                                "and schemaname = %s", index, database.schema))  # fmt: skip

    before = await entries()
    await act()
    return await entries() - before


@pytest.mark.usefixtures("old_snapshot")
async def test_a_turn_and_a_look_do_not_walk_over_all_that_has_ever_been_due(
    database: Fresh, new_shard: NewShard
) -> None:
    protocol, lanes = await new_shard(1), lanes_of(priorities=(1, 2))
    assert protocol.conn is not None
    for _ in range(3):  # looks learn the time, turns go on from there; the floor follows, but for its slack
        look = await protocol.look(lanes, [])
        lanes.look(look.sequence, look.oldest_xid, look.next_xid, late=False, now_us=look.now_us)
        await turn(protocol, lanes)
    database.sql(
        "insert into {s}.job (queue, slot, priority, kind, args, run_at) select 'default', n %% 4, 1 + n %% 2, 'k', '{{}}', "
        "now() - interval '1 minute' from generate_series(1, %s) n", DEAD,
    )  # fmt: skip
    database.sql("delete from {s}.job")
    waiting = add(database, run_at="now()")
    assert await visited(database, protocol.conn, lambda: protocol.look(lanes, []), "job_due") < 50
    assert await visited(database, protocol.conn, lambda: turn(protocol, lanes, limit=100), "job_due") < 50
    assert await visited(database, protocol.conn, lambda: protocol.look(lanes, [waiting], whole=True), "job_due") >= DEAD


async def test_a_job_with_a_time_far_in_the_past_is_found_by_a_whole_look_and_then_claimed(
    database: Fresh, new_shard: NewShard
) -> None:
    protocol, lanes = await new_shard(1), lanes_of()
    for _ in range(4):
        look = await protocol.look(lanes, [])
        lanes.look(look.sequence, look.oldest_xid, look.next_xid, late=False, now_us=look.now_us)
        await turn(protocol, lanes, changed=True)
    backdated = add(database, run_at="now() - interval '1 hour'")
    assert (await protocol.look(lanes, [])).due_late is None
    late = (await protocol.look(lanes, [], whole=True)).due_late
    assert late is not None
    lanes.rewind_due_to(late)
    assert await turn(protocol, lanes) == [backdated]


@pytest.mark.usefixtures("old_snapshot")
async def test_the_sweep_of_cancellations_looks_at_no_job_but_those_that_were_asked_for(
    database: Fresh, new_shard: NewShard
) -> None:
    """It asked of each waiting job whether somebody holds it, and walked over all that were dead: seconds beside a backlog."""
    aconn = await connect(database.dsn, database.settings.database, name="keeper", settings=BY_INDEX)
    protocol, lanes = await new_shard(1), lanes_of()
    held = add(database)
    assert await turn(protocol, lanes) == [held]
    for _ in range(100):
        await turn(protocol, lanes, held=[held], changed=True)
    waiting = add(database)
    database.sql(
        "insert into {s}.job (queue, slot, kind, args) select 'default', n %% 4, 'k', '{{}}' from generate_series(1, %s) n",
        DEAD,
    )
    database.sql("delete from {s}.job where id <> all(%s)", [held, waiting])
    database.sql("vacuum analyze {s}.job")  # it meets two rows, and may not remove the others
    database.sql("insert into {s}.cancel_request (job, queue, reason, asked_at) "
                 "select unnest(%s::bigint[]), 'default', 'x', now() - interval '1 minute'", [held, waiting])  # fmt: skip
    cancelled: list[int] = []

    async def sweep() -> None:
        cancelled.append(await cancel_unheld(aconn, database.statements))

    assert await visited(database, aconn, sweep, "claim_pkey") < 300
    assert await visited(database, aconn, sweep, "job_pkey") < 50
    assert cancelled == [1, 0]
    assert database.sql("select id from {s}.job where id = any(%s)", [held, waiting]) == [(held,)]
    await aconn.close()


@pytest.mark.usefixtures("old_snapshot")
async def test_the_new_owner_of_a_slot_walks_over_what_is_gone_once_and_not_in_each_turn(
    database: Fresh, new_shard: NewShard
) -> None:
    """Nothing came in the lanes of priority 2 any more: beside a snapshot each turn walked over all that had been there."""
    database.sql(
        "insert into {s}.job (queue, slot, priority, kind, args) select 'default', n %% 4, 1 + n %% 2, 'k', '{{}}' "
        "from generate_series(1, %s) n", DEAD,
    )  # fmt: skip
    database.sql("delete from {s}.job")
    protocol, lanes = await new_shard(1), lanes_of(priorities=(1, 2))
    assert protocol.conn is not None
    assert await visited(database, protocol.conn, lambda: turn(protocol, lanes, limit=100), "job_ready") >= DEAD
    for _ in range(4):
        add(database)
        look = await protocol.look(lanes, [])
        lanes.look(look.sequence, look.oldest_xid, look.next_xid, late=False, now_us=look.now_us)
        await turn(protocol, lanes)
    assert await visited(database, protocol.conn, lambda: turn(protocol, lanes, limit=100), "job_ready") < 50
    assert await visited(database, protocol.conn, lambda: protocol.look(lanes, []), "job_ready") < 50
