"""The protocol against real SQL: a shard's turn claims and acknowledges, and a fenced shard writes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.fix_pg import Fresh
from wqcore import clock
from wqcore.db.connect import AsyncConnection
from wqcore.job import Row
from wqcore.line.lanes import Lanes
from wqcore.line.settle import Again, Ended, Outcomes
from wqcore.line.turn import Fenced, Protocol
from wqcore.upkeep.rescue import Rescued, rescue

NewShard = Callable[..., Awaitable[Protocol]]


def add(database: Fresh, *, slot: int = 0, priority: int = 1, conn: Any = None, **columns: Any) -> int:
    """Inserts a job as clients do: the xid first, then the id."""
    columns = {"queue": "default", "slot": slot, "priority": priority, "kind": "k", "args": "{}"} | columns
    run_at = columns.pop("run_at", "null")
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    text = sql.SQL(
        "with x as materialized (select pg_current_xact_id() as id) insert into {}.job (run_at, {}) select {}, {} from x "
        "where x.id is not null returning id"
    ).format(
        sql.Identifier(database.schema), names, sql.SQL(run_at), sql.SQL(", ").join([sql.Placeholder()] * len(columns))
    )
    return int((conn or database.conn).execute(text, list(columns.values())).fetchone()[0])


def claimed(id_: int, revision: int) -> tuple[object, ...]:
    """A row as a turn returns it, as far as an acknowledgement looks at it."""
    return tuple({Row.ID: id_, Row.REVISION: revision}.get(column) for column in range(Row.METADATA + 1))


def done(*rows: tuple[int, int]) -> Outcomes:
    outcomes = Outcomes()
    for id_, revision in rows:
        outcomes.done.append(claimed(id_, revision))
        outcomes.done_began.append(clock.monotonic())
    return outcomes


async def turn(
    protocol: Protocol, lanes: Lanes, outcomes: Outcomes | None = None, *, limit: int = 10, held: list[int] | None = None,
    exclude: list[int] | None = None, busy_keys: list[str] | None = None, changed: bool = False, take: bool = True,
) -> list[int]:
    """One turn; the ids that it claimed."""
    held = held or []
    turned = await protocol.turn(
        outcomes or Outcomes(), lanes, limit=limit, held=held, exclude=held if exclude is None else exclude,
        busy_keys=busy_keys or [], changed=changed,
    )
    if take and limit:
        lanes.took(turned.rows, limit)
    return [row[Row.ID] for row in turned.rows]


def claims(database: Fresh) -> list[list[int]]:
    return [ids for (ids,) in database.sql("select ids from {s}.claim order by shard, turn")]


def lanes_of(*slots: int, priorities: tuple[int, ...] = (1,)) -> Lanes:
    lanes = Lanes(priorities)
    lanes.set_slots(slots or (0, 1, 2, 3))
    return lanes


async def test_a_turn_claims_by_priority_then_age_and_only_in_its_slots(database: Fresh, new_shard: NewShard) -> None:
    low = [add(database, slot=0) for _ in range(3)]
    high = [add(database, slot=1, priority=5) for _ in range(2)]
    add(database, slot=3)
    protocol, lanes = await new_shard(1), lanes_of(0, 1, priorities=(1, 5))
    assert await turn(protocol, lanes, limit=4) == high + low[:2]
    assert claims(database) == [high + low[:2]]
    assert await turn(protocol, lanes, held=high + low[:2]) == low[2:]
    assert claims(database) == [high + low]
    assert await turn(protocol, lanes, held=high + low) == []


async def test_an_acknowledged_job_is_in_the_history_and_only_there(database: Fresh, new_shard: NewShard) -> None:
    first, second = add(database), add(database, serial_key="s", metadata='{"m": 1}')
    protocol, lanes = await new_shard(1), lanes_of()
    await turn(protocol, lanes)
    await turn(protocol, lanes, done((second, 0)), held=[first], changed=True)
    assert database.sql("select id from {s}.job") == [(first,)]
    assert claims(database) == [[first]]
    columns = "id, outcome, attempt, shard, serial_key, metadata, finished_at >= attempted_at"
    assert database.sql("select " + columns + " from {s}.history") == [(second, "completed", 1, 1, "s", {"m": 1}, True)]


async def test_a_job_changed_while_it_ran_is_left_by_its_acknowledgement(database: Fresh, new_shard: NewShard) -> None:
    id_ = add(database)
    protocol, lanes = await new_shard(1), lanes_of()
    await turn(protocol, lanes)
    database.sql("update {s}.job set revision = revision + 1")
    turned = await protocol.turn(done((id_, 0)), lanes, limit=0, held=[], exclude=[], busy_keys=[], changed=True)
    assert turned.done_count == 0
    assert await protocol.remaining([id_]) == [(id_, 0, 1)]
    lanes.rewind_before(0, 1, id_)
    assert await turn(protocol, lanes) == [id_]
    assert database.one("select count(*) from {s}.history") == 0


async def test_a_retention_of_nothing_writes_no_history(database: Fresh, new_shard: NewShard) -> None:
    first, second = add(database), add(database)
    protocol, lanes = await new_shard(1), lanes_of()
    protocol.keep_completed_hours = 0
    database.sql("update {s}.queue set keep_hours = '{{\"completed\": 0, \"cancelled\": 0, \"discarded\": 0}}'")
    await turn(protocol, lanes)
    await protocol.end([Ended(second, 0, clock.monotonic(), "discarded", '{"error": "x"}')])
    await turn(protocol, lanes, done((first, 0)), changed=True)
    assert database.one("select count(*) from {s}.history") == 0
    assert database.one("select count(*) from {s}.job") == 0


async def test_an_idle_turn_and_a_look_write_nothing(database: Fresh, new_shard: NewShard) -> None:
    protocol, lanes = await new_shard(1), lanes_of()
    before = database.one("select pg_current_wal_insert_lsn()")
    for _ in range(5):
        await turn(protocol, lanes)
        await protocol.look(lanes, [])
    assert claims(database) == []
    assert database.one("select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s)::bigint", before) < 2000


async def test_a_reply_that_was_lost_costs_nothing_because_the_turn_is_repeated(
    database: Fresh, new_shard: NewShard
) -> None:
    ids = [add(database, slot=n % 4) for n in range(6)]
    protocol, lanes = await new_shard(1), lanes_of()
    assert sorted(await turn(protocol, lanes, take=False)) == ids
    assert sorted(await turn(protocol, lanes)) == ids
    assert sorted(claims(database)[-1]) == ids
    finished = done(*((id_, 0) for id_ in ids))
    await turn(protocol, lanes, finished, changed=True)
    await turn(protocol, lanes, finished, changed=True)
    assert database.one("select count(*) from {s}.history") == 6
    assert claims(database) == [[]]


async def test_a_fenced_shard_writes_nothing(database: Fresh, new_shard: NewShard, aconn: AsyncConnection) -> None:
    id_ = add(database)
    protocol, lanes = await new_shard(1), lanes_of()
    await turn(protocol, lanes)
    assert await save(database, aconn, 1, [(id_, 0)]) == Rescued("default", 1, 0, 1)
    before = database.sql("select * from {s}.job")
    failed = Again(id_, 0, 1, 0.0, '{"error": "late"}')
    ended = Ended(id_, 0, clock.monotonic(), "discarded", '{"error": "late"}')
    for late in (
        turn(protocol, lanes, done((id_, 0))),
        protocol.retry([failed]),
        protocol.end([ended]),
        protocol.look(lanes, []),
    ):
        with pytest.raises(Fenced):
            await late
    assert await protocol.take_slots(4) == []
    with pytest.raises(Fenced):
        await protocol.release_slots([0])
    assert not await protocol.complete_tx(aconn, job_id=id_, revision=0, ago_us=0)
    assert database.sql("select * from {s}.job") == before
    assert database.one("select count(*) from {s}.history") == 0
    assert claims(database) == []


async def save(
    database: Fresh, aconn: AsyncConnection, shard: int, started: list[tuple[int, int]], *, deaths_max: int = 3,
    suspect_rest: bool = False,
) -> Rescued | None:
    return await rescue(
        aconn, database.statements, shard=shard, started=started, reason="worker died (signal 9)",
        deaths_max=deaths_max, suspect_rest=suspect_rest,
    )


async def test_a_rescue_charges_what_had_started_and_leaves_the_rest_untouched(
    database: Fresh, new_shard: NewShard, aconn: AsyncConnection
) -> None:
    ids = [add(database) for _ in range(3)]
    protocol, lanes = await new_shard(1), lanes_of()
    await protocol.take_slots(4)
    await turn(protocol, lanes)
    assert await save(database, aconn, 1, [(ids[0], 0)]) == Rescued("default", 1, 0, 3)
    columns = "attempt, deaths, run_at <= now(), jsonb_array_length(errors), errors->0->>'error'"
    assert database.sql("select " + columns + " from {s}.job order by id") == [
        (1, 1, True, 1, "worker died (signal 9)"), (0, 0, None, None, None), (0, 0, None, None, None),
    ]
    assert database.one("select count(*) from {s}.slot where shard is not null") == 0
    assert await save(database, aconn, 1, [(ids[0], 0)]) is None
    second, lanes = await new_shard(2), lanes_of()
    assert sorted(await turn(second, lanes)) == ids


async def test_a_rescue_that_saw_an_older_attempt_charges_nothing(
    database: Fresh, new_shard: NewShard, aconn: AsyncConnection
) -> None:
    id_ = add(database, attempt=1)
    protocol, lanes = await new_shard(1), lanes_of()
    await turn(protocol, lanes)
    assert await save(database, aconn, 1, [(id_, 0)]) == Rescued("default", 0, 0, 1)
    assert database.sql("select attempt, deaths from {s}.job") == [(1, 0)]


async def test_a_rescue_discards_poison_and_what_has_no_attempt_left(
    database: Fresh, new_shard: NewShard, aconn: AsyncConnection
) -> None:
    poison, spent = add(database, deaths=2, max_attempts=9), add(database, max_attempts=1)
    protocol, lanes = await new_shard(1), lanes_of()
    await turn(protocol, lanes)
    assert await save(database, aconn, 1, [(poison, 0), (spent, 0)]) == Rescued("default", 0, 2, 2)
    columns = "outcome, attempt, deaths, errors->0->>'error'"
    assert database.sql("select " + columns + " from {s}.history order by id") == [
        ("discarded", 1, 3, "worker died (signal 9) (discarded as poison after 3 deaths)"),
        ("discarded", 1, 1, "worker died (signal 9)"),
    ]
    assert database.one("select count(*) from {s}.job") == 0


async def test_what_a_thawed_worker_starts_while_its_rescue_waits_is_charged(
    database: Fresh, new_shard: NewShard, aconn: AsyncConnection
) -> None:
    """What had started was read before the fence: jobs that ran in between ran again as the same attempt."""
    id_ = add(database)
    protocol, lanes = await new_shard(1), lanes_of()
    await turn(protocol, lanes)
    board: list[tuple[int, int]] = []
    with psycopg.connect(database.dsn) as turning:
        turning.execute(
            sql.SQL("select from {}.shard where id = 1 for no key update").format(sql.Identifier(database.schema))
        )
        saving = asyncio.create_task(
            rescue(aconn, database.statements, shard=1, started=lambda: board, reason="silent", deaths_max=3, suspect_rest=False)
        )
        while not database.one("select count(*) from pg_locks where not granted"):
            await asyncio.sleep(0.01)
        board.append((id_, 0))
    assert await saving == Rescued("default", 1, 0, 1)
    assert database.sql("select attempt, deaths from {s}.job") == [(1, 1)]


async def test_a_rescue_after_a_dead_host_suspects_what_it_could_not_see(
    database: Fresh, new_shard: NewShard, aconn: AsyncConnection
) -> None:
    ids = [add(database) for _ in range(2)]
    protocol, lanes = await new_shard(1), lanes_of()
    await turn(protocol, lanes)
    await save(database, aconn, 1, [(ids[0], 0)], suspect_rest=True)
    assert database.sql("select attempt, deaths from {s}.job order by id") == [(1, 1), (0, 1)]


async def test_a_rescue_after_a_dead_host_leaves_a_job_alone_that_had_snoozed_since_the_last_heartbeat(
    database: Fresh, new_shard: NewShard, aconn: AsyncConnection
) -> None:
    snoozed, running = add(database), add(database)
    protocol, lanes = await new_shard(1), lanes_of()
    await turn(protocol, lanes)
    await protocol.retry([Again(snoozed, 0, 0, 3600.0, None, ready_us=10**15)])
    await turn(protocol, lanes, held=[running], changed=True)
    await save(database, aconn, 1, [(snoozed, 0), (running, 0)], suspect_rest=True)
    assert database.sql("select attempt, deaths, run_at > now() from {s}.job order by id") == [
        (0, 0, True), (1, 1, False),
    ]  # fmt: skip


async def test_a_retry_waits_keeps_its_errors_and_is_charged_once(database: Fresh, new_shard: NewShard) -> None:
    id_ = add(database)
    protocol, lanes = await new_shard(1), lanes_of()
    await turn(protocol, lanes)
    item = Again(id_, 0, 1, 3600.0, '{"attempt": 1, "error": "boom"}')
    await protocol.retry([item])
    await protocol.retry([item])
    columns = "attempt, run_at > now() + interval '59 minutes', jsonb_array_length(errors), errors->0->>'error'"
    assert database.sql("select " + columns + " from {s}.job") == [(1, True, 1, "boom")]
    await turn(protocol, lanes, changed=True)
    assert database.one("select state from {s}.jobs") == "retryable"
    await protocol.retry([Again(id_, 0, 1, -1.0, None, ready_us=10**15)])
    assert await turn(protocol, lanes) == [id_]


async def test_the_oldest_errors_make_room(database: Fresh, new_shard: NewShard) -> None:
    id_ = add(database, max_attempts=100)
    protocol = await new_shard(1)
    for attempt in range(1, 13):
        await protocol.retry([Again(id_, 0, attempt, 0.0, f'{{"attempt": {attempt}}}')])
    assert database.one("select jsonb_path_query_array(errors, '$[*].attempt') from {s}.job") == list(range(3, 13))


async def test_an_ended_job_is_in_the_history_with_its_reason(database: Fresh, new_shard: NewShard) -> None:
    ids = [add(database), add(database)]
    protocol, lanes = await new_shard(1), lanes_of()
    await turn(protocol, lanes)
    now = clock.monotonic()
    await protocol.end(
        [Ended(ids[0], 0, now, "discarded", '{"error": "no"}'), Ended(ids[1], 0, now, "cancelled", '{"error": "stop"}')]
    )
    await turn(protocol, lanes, changed=True)
    assert database.sql("select id, outcome, errors->0->>'error', attempt from {s}.history order by id") == [
        (ids[0], "discarded", "no", 1), (ids[1], "cancelled", "stop", 1),
    ]
    assert database.one("select count(*) from {s}.job") == 0


async def test_an_error_that_cannot_be_stored_does_not_hold_up_its_batch(database: Fresh, new_shard: NewShard) -> None:
    ids = [add(database) for _ in range(5)]
    protocol = await new_shard(1)
    texts = ['{"error": "fine"}'] * 5
    texts[3] = '{"error": "\\u0000"}'
    await protocol.retry([Again(id_, 0, 1, 0.0, text) for id_, text in zip(ids, texts, strict=True)])
    rows = database.sql("select attempt, errors->0->>'error' from {s}.job order by id")
    assert [attempt for attempt, _ in rows] == [1] * 5
    assert [text == "fine" for _, text in rows] == [True, True, True, False, True]


async def test_due_jobs_are_claimed_when_their_time_has_come(database: Fresh, new_shard: NewShard) -> None:
    later = add(database, run_at="now() + interval '1 hour'")
    past = [add(database, run_at=f"now() - interval '{n} minutes'") for n in (1, 3, 2)]
    protocol, lanes = await new_shard(1), lanes_of()
    look = await protocol.look(lanes, [])
    assert (look.due, look.ready) == (True, False)
    assert look.next_due_us is not None
    assert 3500e6 < look.next_due_us <= 3600e6
    assert await turn(protocol, lanes) == [past[1], past[2], past[0]]
    assert await turn(protocol, lanes, held=past) == []
    database.sql("update {s}.job set run_at = now() - interval '5 minutes' where id = %s", later)
    assert (await protocol.look(lanes, past)).due_late
    lanes.rewind_due(lanes.slots)
    assert await turn(protocol, lanes, held=past) == [later]


async def test_busy_keys_and_held_ids_are_left_out(database: Fresh, new_shard: NewShard) -> None:
    first = add(database, serial_key="a")
    add(database, serial_key="a")
    other, plain = add(database, serial_key="b"), add(database)
    protocol, lanes = await new_shard(1), lanes_of()
    assert await turn(protocol, lanes, exclude=[first], busy_keys=["a"]) == [other, plain]


async def test_a_look_finds_ready_work_and_priorities_without_a_lane(database: Fresh, new_shard: NewShard) -> None:
    protocol, lanes = await new_shard(1), lanes_of(priorities=(1,))
    empty = await protocol.look(lanes, [])
    assert (empty.ready, empty.late, empty.due, empty.gap_priority, empty.shards) == (False, False, False, None, 1)
    for priority in (-1000, 1000):
        add(database, priority=priority)
    assert (await protocol.look(lanes, [])).gap_priority == 1000
    lanes.learn(1000)
    assert (await protocol.look(lanes, [])).gap_priority == -1000
    lanes.learn(-1000)
    found = await protocol.look(lanes, [])
    assert (found.ready, found.gap_priority) == (True, None)
    assert len(await turn(protocol, lanes)) == 2


async def test_slots_are_taken_once_and_are_free_again_when_released(database: Fresh, new_shard: NewShard) -> None:
    one, two = await new_shard(1), await new_shard(2)
    assert await one.take_slots(3) == [0, 1, 2]
    assert await two.take_slots(3) == [3]
    await one.release_slots([1, 2])
    assert await two.take_slots(1) == [1, 3]
    assert await one.owned_slots() == [0]
    await two.leave()
    assert (await one.look(lanes_of(), [])).free_slots == 3
    with pytest.raises(Fenced):
        await two.look(lanes_of(), [])


async def test_the_new_owner_of_a_slot_learns_what_the_old_one_still_holds(
    database: Fresh, new_shard: NewShard
) -> None:
    keyed, plain = add(database, slot=2, serial_key="k"), add(database, slot=1)
    one, two = await new_shard(1), await new_shard(2)
    await turn(one, lanes_of())
    assert sorted(await two.held_elsewhere([0, 1, 2, 3])) == [(keyed, 2, "k"), (plain, 1, None)]
    assert await two.held_elsewhere([0]) == []
    await turn(one, lanes_of(), limit=0, held=[plain], changed=True)
    assert await two.held_elsewhere([0, 1, 2, 3]) == [(plain, 1, None)]


async def test_a_job_completed_in_the_callers_transaction_shares_its_fate(
    database: Fresh, new_shard: NewShard, aconn: AsyncConnection
) -> None:
    id_ = add(database)
    protocol, lanes = await new_shard(1), lanes_of()
    await turn(protocol, lanes)
    with pytest.raises(RuntimeError):
        async with aconn.transaction():
            assert await protocol.complete_tx(aconn, job_id=id_, revision=0, ago_us=0)
            await turn(protocol, lanes, held=[id_], changed=True)  # does not wait for it
            raise RuntimeError
    assert database.one("select count(*) from {s}.job") == 1
    async with aconn.transaction():
        assert await protocol.complete_tx(aconn, job_id=id_, revision=0, ago_us=0)
    assert database.sql("select id, outcome from {s}.history") == [(id_, "completed")]


async def look_in(protocol: Protocol, lanes: Lanes, held: list[int]) -> bool:
    look = await protocol.look(lanes, held)
    lanes.look(look.sequence, look.oldest_xid, look.next_xid, late=look.late)
    return look.late


async def test_a_job_that_commits_late_is_found_behind_the_cursor(database: Fresh, new_shard: NewShard) -> None:
    protocol, lanes = await new_shard(1), lanes_of(0)
    with psycopg.connect(database.dsn) as slow:
        late = add(database, conn=slow)
        early = add(database)
        assert await turn(protocol, lanes) == [early]
        for _ in range(3):
            assert not await look_in(protocol, lanes, [early])
        assert lanes.floor < late
        slow.commit()
        assert await look_in(protocol, lanes, [early])
        assert await turn(protocol, lanes, held=[early]) == [late]


async def test_a_late_job_is_found_also_when_its_transaction_is_the_newest_of_all(
    database: Fresh, new_shard: NewShard
) -> None:
    """Its xid is then not below pg_snapshot_xmax, which is one past the newest *completed* transaction."""
    protocol, lanes = await new_shard(1), lanes_of(0)
    with psycopg.connect(database.dsn) as newest:
        late = add(database, conn=newest)
        for _ in range(4):
            await look_in(protocol, lanes, [])
        early = add(database)
        assert await turn(protocol, lanes) == [early]
        newest.commit()
    found = await look_in(protocol, lanes, [early])
    assert (found, await turn(protocol, lanes, held=[early])) == (True, [late])


async def test_the_very_first_job_of_a_schema_is_found_too_when_it_commits_late(
    database: Fresh, new_shard: NewShard
) -> None:
    """A sequence that nobody has drawn from shows 1 as its last value, and 1 is the id that it will give."""
    protocol, lanes = await new_shard(1), lanes_of(0)
    for _ in range(3):
        await look_in(protocol, lanes, [])
        await turn(protocol, lanes)
    with psycopg.connect(database.dsn) as slow:
        first = add(database, conn=slow)
        second = add(database)
        assert await turn(protocol, lanes) == [second]
        slow.commit()
    found = await look_in(protocol, lanes, [second])
    assert (first, found, await turn(protocol, lanes, held=[second])) == (1, True, [first])


async def test_the_view_shows_one_state_for_every_job(database: Fresh, new_shard: NewShard) -> None:
    running = add(database, slot=1)
    protocol, lanes = await new_shard(1), lanes_of(1)
    completed = add(database, slot=1)
    cancelled = add(database, slot=1)
    await turn(protocol, lanes)
    await protocol.end([Ended(cancelled, 0, clock.monotonic(), "cancelled", '{"error": "x"}')])
    await turn(protocol, lanes, done((completed, 0)), held=[running], changed=True)
    available, due = add(database), add(database, run_at="now() - interval '1 minute'")
    scheduled = add(database, run_at="now() + interval '1 hour'")
    retryable = add(database, run_at="now() + interval '1 hour'", errors='[{"error": "x"}]', attempt=1)
    assert dict(database.sql("select id, state from {s}.jobs")) == {
        running: "running", completed: "completed", cancelled: "cancelled", available: "available", due: "available",
        scheduled: "scheduled", retryable: "retryable",
    }


async def test_a_session_says_which_run_of_which_server_it_is_of(database: Fresh, new_shard: NewShard) -> None:
    first, second = await new_shard(1), await new_shard(2)
    assert first.server
    assert first.server == second.server
    database.conn.execute("select pg_stat_reset_shared('bgwriter')")  # as a crash does
    await second.begin_session()
    assert first.server != second.server
