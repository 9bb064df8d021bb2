"""What a shard says late of a job whose slot another shard has taken over changes nothing of the newer run."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from tests.db.test_protocol_turns import NewShard, add, done, lanes_of, save, turn
from tests.fix_pg import Fresh
from wqcore.db.connect import AsyncConnection, BigIntArray
from wqcore.job import Row
from wqcore.line.settle import Again, Outcomes
from wqcore.line.turn import Protocol
from wqcore.upkeep.rescue import Rescued

STATE = "select attempt, deaths, run_at > now() + interval '1 minute' from {s}.job"


async def claim(protocol: Protocol) -> Again:
    """Claims the only job; the snooze that a run of it would leave."""
    lanes = lanes_of()
    turned = await protocol.turn(Outcomes(), lanes, limit=1, held=[], exclude=[], busy_keys=[], changed=False)
    row = turned.rows[0]
    ready = row[Row.CREATED_AT] if row[Row.RUN_AT] is None else row[Row.RUN_AT]
    return Again(row[Row.ID], row[Row.REVISION], row[Row.ATTEMPT], 0.0, None, ready)


async def test_a_snooze_that_is_sent_again_leaves_the_failed_attempt_of_the_new_owner(
    database: Fresh, new_shard: NewShard
) -> None:
    """The old shard's turn was committed, its reply lost; when it sends the outcomes again the job is another's."""
    add(database)
    one, two = await new_shard(1), await new_shard(2)
    snooze = await claim(one)
    await one.retry([snooze])
    await turn(one, lanes_of(), limit=0, changed=True)
    again = await claim(two)
    await one.retry([snooze._replace(delay_s=3600.0)])
    assert database.sql(STATE) == [(0, 0, False)]
    await two.retry([again._replace(attempt=1, error='{"error": "boom"}')])
    await one.retry([snooze._replace(delay_s=3600.0)])
    assert database.sql(STATE) == [(1, 0, False)]


async def test_a_snooze_that_is_sent_again_does_not_cancel_the_run_of_the_new_owner(
    database: Fresh, new_shard: NewShard
) -> None:
    id_ = add(database)
    one, two = await new_shard(1), await new_shard(2)
    snooze = await claim(one)
    await one.retry([snooze])
    await turn(one, lanes_of(), limit=0, changed=True)
    await claim(two)
    assert database.one("select {s}.cancel(%s)", id_) == "cancelling"
    await one.retry([snooze])
    assert database.one("select count(*) from {s}.job") == 1


async def test_a_snooze_counts_although_the_job_was_moved_in_time_or_priority(
    database: Fresh, new_shard: NewShard
) -> None:
    """A turn that began before may claim a job that gets another priority; a test may travel while it runs."""
    add(database)
    one = await new_shard(1)
    snooze = await claim(one)
    database.sql("update {s}.job set run_at = created_at, priority = 5")
    database.sql("update {s}.job set run_at = run_at - interval '1 hour', created_at = created_at - interval '1 hour'")
    await one.retry([snooze._replace(delay_s=3600.0)])
    assert database.sql(STATE) == [(0, 0, True)]


async def test_a_death_is_not_charged_to_a_job_that_another_shard_runs_by_now(
    database: Fresh, new_shard: NewShard, aconn: AsyncConnection
) -> None:
    """The worker died after its turn was committed and before the board was told: the board still shows the run."""
    id_ = add(database)
    one, two = await new_shard(1), await new_shard(2)
    snooze = await claim(one)
    await one.retry([snooze])
    await turn(one, lanes_of(), limit=0, changed=True)
    await claim(two)
    assert await save(database, aconn, 1, [(id_, 0)]) == Rescued("default", 0, 0, 0)
    assert database.sql(STATE) == [(0, 0, False)]


async def test_a_release_of_an_older_connection_that_arrives_late_releases_nothing(
    database: Fresh, new_shard: NewShard
) -> None:
    """Its worker has connected anew, found the slots its own, and reads them."""
    older = await new_shard(1)
    await older.take_slots(4)
    database.sql("insert into {s}.permit (queue, permit, shard) values ('default', 0, 1)")
    newer = await new_shard(1)
    session = {"session": older._session, "channel": "c"}
    await older._send("slots_release", slots=BigIntArray([0, 1]), **session)
    await older._send("permits_release", permits=BigIntArray([0]), total=2, **session)
    assert await newer.owned_slots() == [0, 1, 2, 3]
    assert await newer.owned_permits() == [0]
    await newer.release_slots([0, 1])
    await newer.release_permits([0], 2)
    assert await newer.owned_slots() == [2, 3]
    assert await newer.owned_permits() == []


async def test_a_late_release_that_waits_for_the_new_connection_releases_nothing(
    database: Fresh, new_shard: NewShard
) -> None:
    older = await new_shard(1)
    await older.take_slots(2)
    with psycopg.connect(database.dsn) as newer:
        newer.execute(database.statements["shard_session"], {"shard": 1})
        late = asyncio.create_task(
            older._send("slots_release", slots=BigIntArray([0, 1]), session=older._session, channel="c")
        )
        waits = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        while not database.one(waits):
            await asyncio.sleep(0.01)
        newer.commit()
    await late
    assert await older.owned_slots() == [0, 1]


async def test_a_session_of_an_older_connection_that_begins_late_does_not_keep_the_newer_one_from_releasing(
    database: Fresh, new_shard: NewShard
) -> None:
    """What it gave up stayed its own for ever, in the table, and nobody read it."""
    older = await new_shard(1)
    await older.take_slots(4)
    database.sql("insert into {s}.permit (queue, permit, shard) values ('default', 0, 1)")
    newer = await new_shard(1)
    await older._send("shard_session")
    await newer.release_slots([0, 1])
    await older._send("shard_session")
    await newer.release_permits([0], 2)
    assert await newer.owned_slots() == [2, 3]
    assert await newer.owned_permits() == []


async def replace_while_it_is_claimed(
    database: Fresh, new_shard: NewShard, serial_key: str | None, queue: str = "default", what: str = "replaced"
) -> tuple[int, list[int]]:
    """A job of slot 0 is replaced in a transaction that stays open while its owner claims it.

    Its id, and what the shard claims to which the slot of its successor belongs.
    """
    id_ = add(database, slot=0, job_key="k")
    one, two = await new_shard(1), await new_shard(2, queue=queue)
    slot = 2 if queue == "default" else 1
    text = "select what from wqcore.insert_keyed(%s, %s, 1, null, 'k', 3, %s, null, '{}', 'k', 'replace', null, null)"
    with psycopg.connect(database.dsn) as slow:
        assert slow.execute(text, (queue, slot, serial_key)).fetchone() == (what,)
        assert await turn(one, lanes_of(0, 1)) == [id_]
        slow.commit()
    found = await turn(two, lanes_of(slot))
    await turn(one, lanes_of(0, 1), done((id_, 0)))
    return id_, found


async def test_a_job_that_is_replaced_stays_in_its_slot_whose_owner_may_run_it(
    database: Fresh, new_shard: NewShard
) -> None:
    id_, found = await replace_while_it_is_claimed(database, new_shard, None)
    assert found == []
    assert database.sql("select id, slot, revision from {s}.job") == [(id_, 0, 1)]


@pytest.mark.parametrize(("serial_key", "queue"), [("another", "default"), (None, "mail"), ("another", "mail")])
async def test_a_job_that_is_replaced_with_another_serial_key_or_queue_ends_and_its_successor_is_another_job(
    database: Fresh, new_shard: NewShard, serial_key: str | None, queue: str
) -> None:
    id_, found = await replace_while_it_is_claimed(database, new_shard, serial_key, queue, "inserted")
    assert database.sql("select id, queue, serial_key, job_key from {s}.job") == [(*found, queue, serial_key, "k")]
    assert found != [id_]
    assert database.sql("select id, outcome, errors->0->>'error' from {s}.history") == [
        (id_, "cancelled", "replaced by a newer job of its job key")
    ]
