"""Job keys and uniqueness: at most one unfinished job has a key, whoever inserts at the same time."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from typing import Any, get_type_hints

import msgspec
import psycopg
import pytest
import pytest_asyncio

from tests.db.test_protocol_turns import NewShard, done, lanes_of, turn
from tests.fix_pg import Fresh
from wqcore.backoff import river
from wqcore.catalog import Catalog, Kind
from wqcore.client import Client, SyncClient
from wqcore.errors import InsertError
from wqcore.job import JobState, Unique
from wqcore.line.insert import InsertOptions, Options
from wqcore.line.settle import Again
from wqcore.watch.bulk import insert_lines

FUTURE = dt.datetime(2040, 1, 1, tzinfo=dt.UTC)
LATER = dt.datetime(2041, 1, 1, tzinfo=dt.UTC)


class Note(msgspec.Struct, rename="camel"):
    user_id: int
    text: str = ""


def _catalog() -> Catalog:
    catalog = Catalog()
    catalog.declare(
        Kind(
            "note", Note, queue="default", serial_key=None, priority=1, max_attempts=3, timeout_s=60, backoff=river,
            planned=False,
        )
    )  # fmt: skip
    return catalog


@pytest_asyncio.fixture
async def client(database: Fresh) -> AsyncIterator[Client]:
    async with Client(database.settings, catalog=_catalog()) as client:
        yield client


def jobs(database: Fresh, columns: str = "id, args->>'userId'") -> list[tuple[Any, ...]]:
    return database.sql("select " + columns + " from {s}.job order by id")


# --- job keys


async def test_a_waiting_job_of_the_key_is_replaced_and_its_attempts_start_anew(
    database: Fresh, client: Client
) -> None:
    first = await client.insert(Note(1), job_key="k", run_at=FUTURE)
    database.sql("update {s}.job set attempt = 2, errors = '[1]', deaths = 1")
    second = await client.insert(Note(2, "new"), job_key="k", run_at=LATER, priority=9)
    assert (first.replaced, second.replaced, second.skipped, second == first) == (False, True, False, True)
    columns = "args->>'text', run_at, priority, queue, attempt, errors, deaths, revision, job_key"
    assert jobs(database, columns) == [("new", LATER, 9, "default", 0, None, 0, 1, "k")]


@pytest.mark.parametrize("other", [{"queue": "mail"}, {"serial_key": "s"}])
async def test_a_waiting_job_of_the_key_ends_when_its_successor_has_another_queue_or_serial_key(
    database: Fresh, client: Client, other: dict[str, str]
) -> None:
    first = await client.insert(Note(1), job_key="k", run_at=FUTURE)
    second = await client.insert(Note(2, "new"), job_key="k", job_key_mode="preserve_run_at", run_at=LATER, **other)
    assert (second.replaced, second.skipped, second == first) == (False, False, False)
    assert jobs(database, "id, args->>'text', run_at, job_key") == [(int(second), "new", FUTURE, "k")]
    assert database.sql("select id, outcome, attempt from {s}.history") == [(int(first), "cancelled", 0)]


async def test_preserve_run_at_keeps_the_time_unless_a_retry_has_set_it(database: Fresh, client: Client) -> None:
    await client.insert(Note(1), job_key="k", run_at=FUTURE)
    await client.insert(Note(2), job_key="k", job_key_mode="preserve_run_at", run_at=LATER)
    assert jobs(database, "args->>'userId', run_at") == [("2", FUTURE)]
    database.sql("update {s}.job set attempt = 1")
    await client.insert(Note(3), job_key="k", job_key_mode="preserve_run_at", run_at=LATER)
    assert jobs(database, "args->>'userId', run_at, attempt") == [("3", LATER, 0)]


async def test_unsafe_dedupe_leaves_the_job_as_it_is(database: Fresh, client: Client) -> None:
    first = await client.insert(Note(1), job_key="k", run_at=FUTURE)
    second = await client.insert(Note(2), job_key="k", job_key_mode="unsafe_dedupe")
    assert (second == first, second.skipped) == (True, True)
    assert jobs(database, "args->>'userId', revision") == [("1", 0)]


async def test_a_replaced_ready_job_is_found_again_though_its_id_is_behind_the_cursor(
    database: Fresh, client: Client, new_shard: NewShard
) -> None:
    old = await client.insert(Note(1), job_key="k", run_at=FUTURE)
    newer = await client.insert(Note(9))
    protocol, lanes = await new_shard(1), lanes_of()
    assert await turn(protocol, lanes) == [newer]
    await client.insert(Note(2), job_key="k")
    assert await turn(protocol, lanes, held=[newer]) == [old]


async def test_a_job_that_is_held_loses_its_key_and_retries_and_a_new_one_is_inserted(
    database: Fresh, client: Client, new_shard: NewShard
) -> None:
    old = await client.insert(Note(1), job_key="k")
    protocol, lanes = await new_shard(1), lanes_of()
    await turn(protocol, lanes)
    new = await client.insert(Note(2), job_key="k")
    assert (new != old, new.replaced, new.skipped) == (True, False, False)
    assert jobs(database, "id, job_key, max_attempts, revision") == [(old, None, 0, 0), (new, "k", 3, 0)]
    await protocol.retry([Again(old, 0, 1, 0.0, '{"error": "boom"}')])
    assert database.sql("select id, outcome, errors->0->>'error' from {s}.history") == [(old, "discarded", "boom")]
    assert [id_ for id_, _ in jobs(database)] == [new]


async def test_a_held_job_that_was_replaced_may_still_complete_or_be_snoozed_away(
    database: Fresh, client: Client, new_shard: NewShard
) -> None:
    first, second = await client.insert(Note(1), job_key="a"), await client.insert(Note(1), job_key="b")
    protocol, lanes = await new_shard(1), lanes_of()
    await turn(protocol, lanes)
    for key in "ab":
        await client.insert(Note(2), job_key=key, run_at=FUTURE)
    await protocol.retry([Again(second, 0, 0, 5.0, None, ready_us=10**15)])
    await turn(protocol, lanes, done((first, 0)), changed=True)
    assert dict(database.sql("select id, outcome from {s}.history")) == {first: "completed", second: "cancelled"}


async def test_a_job_claimed_while_it_was_replaced_runs_again_with_the_new_args(
    database: Fresh, client: Client, new_shard: NewShard
) -> None:
    """The turn locks no job: its snapshot may be older than the replacement. Then the revision tells."""
    old = await client.insert(Note(1), job_key="k")
    protocol, lanes = await new_shard(1), lanes_of()
    async with await psycopg.AsyncConnection.connect(database.dsn) as conn:
        await client.insert_tx(conn, Note(2), job_key="k")
        assert await turn(protocol, lanes) == [old]
        await conn.commit()
    turned = await protocol.turn(done((old, 0)), lanes, limit=0, held=[], exclude=[], busy_keys=[], changed=True)
    assert turned.done_count == 0
    assert jobs(database, "id, args->>'userId', revision") == [(old, "2", 1)]
    assert (await protocol.look(lanes, [])).due
    assert await turn(protocol, lanes) == [old]


async def test_dequeue_takes_a_waiting_job_away_and_lets_a_held_one_go_on(
    database: Fresh, client: Client, new_shard: NewShard
) -> None:
    held = await client.insert(Note(1), job_key="held")
    protocol, lanes = await new_shard(1), lanes_of()
    await turn(protocol, lanes)
    waiting = await client.insert(Note(2), job_key="waiting", run_at=FUTURE)
    assert [await client.dequeue(key) for key in ("waiting", "held", "unknown", "waiting")] == [
        True, True, False, False,
    ]
    assert jobs(database, "id, job_key, max_attempts") == [(held, None, 0)]
    assert database.sql("select id, outcome, attempt from {s}.history") == [(waiting, "cancelled", 0)]


async def test_many_clients_with_one_key_leave_one_job(database: Fresh, client: Client) -> None:
    ids = await asyncio.gather(*(client.insert(Note(n), job_key="k", run_at=FUTURE) for n in range(40)))
    assert len(set(ids)) == 1
    assert [each.replaced for each in ids].count(False) == 1
    assert database.one("select count(*) from {s}.job") == 1


# --- uniqueness


async def test_the_same_args_are_inserted_once_while_the_job_is_unfinished(
    database: Fresh, client: Client, new_shard: NewShard
) -> None:
    first = await client.insert(Note(1, "a"), unique=Unique())
    again = await client.insert(Note(1, "a"), unique=Unique())
    other = await client.insert(Note(1, "b"), unique=Unique())
    assert (again == first, again.skipped, other.skipped) == (True, True, False)
    protocol, lanes = await new_shard(1), lanes_of()
    await turn(protocol, lanes)
    assert (await client.insert(Note(1, "a"), unique=Unique())).skipped
    await turn(protocol, lanes, done((first, 0)), held=[other], changed=True)
    assert not (await client.insert(Note(1, "a"), unique=Unique())).skipped


async def test_chosen_fields_queue_and_period_make_a_job_unique(database: Fresh, client: Client) -> None:
    by_user = Unique(args=("user_id",))
    assert not (await client.insert(Note(1, "a"), unique=by_user)).skipped
    assert (await client.insert(Note(1, "b"), unique=by_user)).skipped
    assert not (await client.insert(Note(2, "b"), unique=by_user)).skipped
    any_args = Unique(args=False, queue=True)
    assert not (await client.insert(Note(3), unique=any_args)).skipped
    assert (await client.insert(Note(4), unique=any_args)).skipped
    assert not (await client.insert(Note(4), unique=any_args, queue="mail")).skipped
    hourly, at = Unique(period_s=3600), FUTURE + dt.timedelta(minutes=59)
    assert not (await client.insert(Note(5), unique=hourly, run_at=FUTURE)).skipped
    assert (await client.insert(Note(5), unique=hourly, run_at=at)).skipped
    assert not (await client.insert(Note(5), unique=hourly, run_at=at + dt.timedelta(minutes=1))).skipped


async def test_finished_jobs_count_when_they_are_asked_for(
    database: Fresh, client: Client, new_shard: NewShard
) -> None:
    also = Unique(states=(JobState.COMPLETED,))
    first = await client.insert(Note(1), unique=also)
    protocol, lanes = await new_shard(1), lanes_of()
    await turn(protocol, lanes)
    await turn(protocol, lanes, done((first, 0)), changed=True)
    again = await client.insert(Note(1), unique=also)
    assert (again == first, again.skipped) == (True, True)
    assert database.one("select count(*) from {s}.job") == 0
    assert not (await client.insert(Note(1), unique=Unique(states=(JobState.DISCARDED,)))).skipped


async def test_many_clients_insert_a_unique_job_once(database: Fresh, client: Client) -> None:
    ids = await asyncio.gather(*(client.insert(Note(1), unique=Unique()) for _ in range(40)))
    assert len(set(ids)) == 1
    assert [each.skipped for each in ids].count(False) == 1


async def test_an_aborted_transaction_leaves_its_key_to_others(database: Fresh, client: Client) -> None:
    async with await psycopg.AsyncConnection.connect(database.dsn) as conn:
        await client.insert_tx(conn, Note(1), unique=Unique())
        waiter = asyncio.create_task(client.insert(Note(1), unique=Unique()))
        await asyncio.sleep(0.1)
        assert not waiter.done()
        await conn.rollback()
        assert not (await waiter).skipped


# --- in bulk


@pytest.mark.parametrize("sync", [False, True])
async def test_a_bulk_insert_counts_what_was_there_and_does_not_fail(
    database: Fresh, client: Client, sync: bool
) -> None:
    there = await client.insert(Note(0), unique=Unique())
    await client.insert(Note(7), job_key="k", run_at=FUTURE)
    unique, key = InsertOptions(unique=Unique()), InsertOptions(job_key="k")
    items = [Note(1), (Note(0), unique), (Note(2), unique), (Note(2), unique), (Note(8), key), Note(3)]
    seen: list[tuple[int, int]] = []
    if sync:
        with SyncClient(database.settings, catalog=_catalog()) as blocking:
            added = blocking.insert_many(items, skipped=lambda *found: seen.append(found))
    else:
        added = await client.insert_many(items, skipped=lambda *found: seen.append(found))
    assert (added, added.skipped, added.replaced) == (3, 2, 1)
    two = database.one("select id from {s}.job where args->>'userId' = '2'")
    assert sorted(seen) in ([(1, there), (2, two)], [(1, there), (3, two)])
    assert sorted(user for _, user in jobs(database)) == ["0", "1", "2", "3", "8"]


async def test_a_bulk_insert_of_more_keyed_jobs_than_one_statement_takes(database: Fresh, client: Client) -> None:
    items = [(Note(n % 700), InsertOptions(unique=Unique())) if n % 2 else Note(n) for n in range(2000)]
    added = await client.insert_many(items)
    assert (added, added.skipped) == (1000 + 350, 650)
    assert database.one("select count(*) from {s}.job") == 1350


async def test_two_bulk_inserts_of_the_same_keys_do_not_lock_each_other_out(database: Fresh, client: Client) -> None:
    options = [InsertOptions(job_key=f"k{n}", run_at=FUTURE) for n in range(300)]
    forward = [(Note(n), option) for n, option in enumerate(options)]
    results = await asyncio.gather(client.insert_many(forward), client.insert_many(reversed(forward)))
    assert sorted((int(each), each.replaced) for each in results) == [(0, 300), (300, 0)]


# --- refusals


async def test_what_cannot_be_meant_is_refused(database: Fresh, client: Client) -> None:
    for wrong, text in (
        ({"job_key": "k", "unique": Unique()}, "not both"),
        ({"job_key": ""}, "job key is empty"),
        ({"job_key": "k", "job_key_mode": "often"}, "often"),
        ({"unique": Unique(args=("nope",))}, "nope"),
        ({"unique": Unique(period_s=0)}, "period_s"),
        ({"unique": Unique(args=())}, "args"),
    ):
        with pytest.raises(InsertError, match=text):
            await client.insert(Note(1), **wrong)
    assert jobs(database) == []


def test_keywords_of_an_insert_are_the_fields_of_its_options() -> None:
    fields = {field.name: field.type for field in msgspec.structs.fields(InsertOptions)}
    assert get_type_hints(Options) == fields


def test_lines_of_a_file_may_have_job_keys_and_be_unique(database: Fresh) -> None:
    said: list[str] = []
    lines = [
        b'{"kind": "note", "args": {"userId": 1}, "job_key": "k", "run_at": "2040-01-01T00:00:00Z"}',
        b'{"kind": "note", "args": {"userId": 2}, "job_key": "k", "job_key_mode": "preserve_run_at"}',
        b'{"kind": "note", "args": {"userId": 3}, "unique": {"args": ["user_id"], "period_s": 60}}',
        b'{"kind": "note", "args": {"userId": 3, "text": "x"}, "unique": {"args": ["user_id"], "period_s": 60}}',
        b'{"kind": "note", "args": {"userId": 4}, "unique": {"fields": []}}',
    ]
    catalog = _catalog()
    with SyncClient(database.settings, catalog=catalog) as client:
        report = insert_lines(
            client, catalog, lines, strict=False, refused=said.append, read=lambda size, number: None
        )
    assert (report.inserted, report.replaced, report.skipped, report.refused) == (2, 1, 1, 1)
    assert "line 5" in said[0]
    assert jobs(database, "args->>'userId', run_at") == [("2", FUTURE), ("3", None)]
