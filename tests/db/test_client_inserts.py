"""Inserting through both clients: what returned is there, what raised is not."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack

import msgspec
import psycopg
import pytest
import pytest_asyncio

from tests.fix_pg import Fresh
from wqcore import clock
from wqcore.backoff import river
from wqcore.catalog import Catalog, Kind
from wqcore.client import PROGRESS_ROWS, Client, SyncClient, front
from wqcore.db import wake
from wqcore.errors import (
    ArgsTooLarge,
    ConfigError,
    DatabaseUnavailable,
    InsertError,
    SchemaError,
    UnknownKind,
    UnknownQueue,
)
from wqcore.line.insert import InsertOptions, slot_of


class Note(msgspec.Struct):
    n: int


class Text(msgspec.Struct):
    text: str


def _catalog() -> Catalog:
    catalog = Catalog()
    for name, args_type in (("note", Note), ("text", Text)):
        catalog.declare(
            Kind(
                name, args_type, queue="default", serial_key=None, priority=1, max_attempts=3, timeout_s=60,
                backoff=river, planned=False,
            )
        )
    return catalog


CATALOG = _catalog()


@pytest_asyncio.fixture
async def client(database: Fresh) -> AsyncIterator[Client]:
    async with Client(database.settings, catalog=CATALOG) as client:
        yield client


@pytest.fixture
def sync_client(database: Fresh) -> Iterator[SyncClient]:
    with SyncClient(database.settings, catalog=CATALOG) as client:
        yield client


async def test_an_inserted_job_is_there_with_what_its_kind_declares(database: Fresh, client: Client) -> None:
    id_ = await client.insert(Note(5))
    assert database.sql("select id, queue, kind, priority, max_attempts, run_at, args from {s}.job") == [
        (id_, "default", "note", 1, 3, None, {"n": 5})
    ]
    assert await client.insert(Note(6)) > id_


async def test_options_win_over_the_kind(database: Fresh, client: Client) -> None:
    at = dt.datetime(2040, 1, 2, 3, 4, 5, 678901, tzinfo=dt.UTC)
    options = InsertOptions(
        queue="mail", priority=-7, max_attempts=9, run_at=at, serial_key="schlüssel", metadata={"a": ["b"]}
    )
    await client.insert(Note(1), options)
    columns = "queue, priority, max_attempts, run_at, serial_key, metadata, slot"
    assert database.sql("select " + columns + " from {s}.job") == [
        ("mail", -7, 9, at, "schlüssel", {"a": ["b"]}, slot_of("schlüssel", 2))
    ]


async def test_a_job_inserted_in_a_transaction_that_is_rolled_back_does_not_exist(
    database: Fresh, client: Client
) -> None:
    conn = await psycopg.AsyncConnection.connect(database.dsn)
    async with conn:
        await client.insert_tx(conn, Note(1))
        await conn.rollback()
        kept = await client.insert_tx(conn, Note(2))
    assert database.sql("select id, args->>'n' from {s}.job") == [(kept, "2")]


def test_the_same_holds_without_asyncio(database: Fresh, sync_client: SyncClient) -> None:
    with psycopg.connect(database.dsn) as conn:
        sync_client.insert_tx(conn, Note(1))
        conn.rollback()
        sync_client.enqueue("note", {"n": 2}, tx=conn)
    sync_client.insert(Note(3))
    sync_client.enqueue("note", '{"n": 4}', priority=5)
    assert sync_client.insert_many(Note(n) for n in (5, 6)) == 2
    assert database.sql("select args->>'n' from {s}.job order by id") == [("2",), ("3",), ("4",), ("5",), ("6",)]


async def test_a_bulk_insert_takes_any_iterable_and_says_how_far_it_is(database: Fresh, client: Client) -> None:
    said: list[int] = []
    assert await client.insert_many((Note(n) for n in range(2 * PROGRESS_ROWS + 1)), progress=said.append) == 10_001
    assert said == [PROGRESS_ROWS, 2 * PROGRESS_ROWS]
    assert database.one("select count(*) from {s}.job") == 10_001
    assert database.one("select count(distinct slot) from {s}.job") == 4

    async def later() -> AsyncIterator[Note]:
        yield Note(1)

    assert await client.insert_many(later()) == 1
    assert await client.insert_many([]) == 0


async def test_one_refused_item_rolls_a_bulk_insert_back_and_the_client_goes_on(database: Fresh, client: Client) -> None:
    items = [Text("fine"), Text("not \x00 fine")]
    with pytest.raises(InsertError, match="NUL"):
        await client.insert_many(items)
    assert database.one("select count(*) from {s}.job") == 0
    await client.insert(Text("fine"))
    assert database.one("select count(*) from {s}.job") == 1


async def test_an_unknown_queue_is_refused_and_known_as_soon_as_it_exists(database: Fresh, client: Client) -> None:
    with pytest.raises(UnknownQueue, match="'later'.*default"):
        await client.insert(Note(1), InsertOptions(queue="later"))
    new = {"queue": "later", "slots": 3, "keep_hours": "{}", "channel": wake.channel(database.schema, "later")}
    database.conn.execute(database.statements["sync_queue"], new)
    await client.insert(Note(1), InsertOptions(queue="later"))
    assert database.one("select queue from {s}.job") == "later"


async def test_what_is_refused_is_not_written(database: Fresh, client: Client) -> None:
    with pytest.raises(UnknownKind):
        await client.enqueue("nope", {})
    with pytest.raises(ArgsTooLarge):
        await client.insert(Text("x" * 300_000))
    with pytest.raises(UnknownKind):
        await client.insert(Unregistered())
    assert database.one("select count(*) from {s}.job") == 0


class Unregistered(msgspec.Struct):
    pass


async def test_an_insert_wakes_the_shards_of_its_queue_only(database: Fresh, client: Client) -> None:
    channel = wake.channel(database.schema, "default")
    database.conn.execute(f'listen "{channel}"')
    await client.insert(Note(1), InsertOptions(queue="mail"))
    await client.insert(Note(1), InsertOptions(priority=6))
    await client.insert_many([Note(1), (Note(2), InsertOptions(run_at=dt.datetime(2040, 1, 1, tzinfo=dt.UTC)))])
    heard = [note.payload for note in database.conn.notifies(timeout=5, stop_after=2)]
    slots = [slot for (slot,) in database.sql("select slot from {s}.job where queue = 'default' order by id")]
    assert heard == [f"{slots[0]}:6", f"{slots[1]}:1 due"]


async def test_an_unopened_client_says_so(database: Fresh) -> None:
    client = Client(database.settings, catalog=CATALOG)
    with pytest.raises((UnknownQueue, DatabaseUnavailable), match="not open"):
        await client.insert(Note(1))
    with pytest.raises(ConfigError, match="DSN"):
        Client()


async def test_a_database_without_our_schema_is_named(empty_dsn: str) -> None:
    with pytest.raises(SchemaError, match="wqcore migrate"):
        await Client(dsn=empty_dsn).initialize()


async def test_an_unreachable_database_is_named_without_its_password() -> None:
    with pytest.raises(DatabaseUnavailable) as caught:
        await Client(dsn="postgresql://u:s3cret@127.0.0.1:1/d").initialize()
    assert "127.0.0.1" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_pool_that_grew_while_connections_broke_shrinks_again(database: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that a single thread used had eight connections after some minutes of bad network, and kept them."""
    monkeypatch.setattr(front, "POOL_IDLE_S", 0.2)
    with SyncClient(database.settings, catalog=CATALOG) as client:
        pool = client._routes.home.pool
        assert pool is not None
        with ExitStack() as many:
            for _ in range(4):
                many.enter_context(pool.connection())
        assert pool.get_stats()["pool_size"] >= 4
        end = clock.monotonic() + 20
        while pool.get_stats()["pool_size"] > 1:
            assert clock.monotonic() < end, "the pool has not shrunk"
            time.sleep(0.05)
        client.insert(Note(1))
