"""Insert middleware, former names and threads, where they meet the database."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

import msgspec
import psycopg
import pytest

from tests.fix_pg import Fresh
from wqcore import launch, testing
from wqcore.backoff import river
from wqcore.catalog import Catalog, Kind
from wqcore.client import Client, SyncClient
from wqcore.db.connect import AsyncConnection
from wqcore.errors import InsertError
from wqcore.job import Job
from wqcore.line.insert import InsertOptions
from wqcore.outcome import Snooze
from wqcore.signature import ThreadHandler


class Note(msgspec.Struct):
    n: int


@pytest.fixture
def catalog() -> Catalog:
    found = Catalog()
    found.declare(
        Kind(
            "note", Note, queue="default", serial_key=None, priority=1, max_attempts=3, timeout_s=60, backoff=river,
            planned=False, aliases=("memo",),
        )
    )  # fmt: skip
    return found


@pytest.fixture
def conn(database: Fresh) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database.settings.database.dsn) as found:  # type: ignore[arg-type]
        yield found


def traced(kind: Kind, args: Note, options: InsertOptions) -> InsertOptions:
    if args.n < 0:
        raise InsertError("n is negative")
    return msgspec.structs.replace(options, metadata={"trace": args.n, **(options.metadata or {})})


def urgent(kind: Kind, args: Note, options: InsertOptions) -> InsertOptions:
    assert options.metadata is not None  # the first registered goes first
    return msgspec.structs.replace(options, priority=9)


async def test_an_insert_middleware_sees_every_job_of_both_clients(database: Fresh, catalog: Catalog) -> None:
    catalog.insert_middleware += [traced, urgent]
    async with Client(database.settings, catalog=catalog) as client:
        await client.insert(Note(1), metadata={"own": True})
        await client.enqueue("note", {"n": 2})
        await client.insert_many([Note(3), (Note(4), InsertOptions(priority=2, job_key="k"))])
    with SyncClient(database.settings, catalog=catalog) as sync_client:
        sync_client.insert(Note(5))
        sync_client.insert_many(iter([Note(6)]))
    rows = database.sql("select (metadata->>'trace')::int, metadata->>'own', priority from {s}.job order by 1")
    assert rows == [(n, "true" if n == 1 else None, 9) for n in range(1, 7)]


async def test_an_insert_middleware_may_refuse_and_then_nothing_is_written(database: Fresh, catalog: Catalog) -> None:
    catalog.insert_middleware.append(traced)
    async with Client(database.settings, catalog=catalog) as client:
        with pytest.raises(InsertError, match="negative"):
            await client.insert(Note(-1))
        with pytest.raises(InsertError, match="negative"):
            await client.insert_many([Note(1), Note(-1)])
        catalog.insert_middleware[:] = [lambda kind, args, options: None]
        with pytest.raises(InsertError, match="returned a NoneType"):
            await client.insert(Note(1))
    assert database.one("select count(*) from {s}.job") == 0


async def test_an_insert_by_a_former_name_stores_the_new_one(database: Fresh, catalog: Catalog) -> None:
    launch.sync_kinds(database.conn, database.settings, catalog)
    async with Client(database.settings, catalog=catalog) as client:
        await client.enqueue("memo", {"n": 1})
    database.sql("select {s}.enqueue('memo', '{{\"n\": 2}}')")
    assert database.sql("select kind, args->>'n' from {s}.job order by 2") == [("note", "1"), ("note", "2")]


async def test_a_thread_completes_its_job_in_its_own_transaction(database: Fresh, catalog: Catalog) -> None:
    dsn: Any = database.settings.database.dsn
    schema = database.settings.database.schema
    database.sql("create table {s}.done (id bigint)")

    def handler(args: Note, job: Job) -> None:
        with psycopg.connect(dsn) as own, own.transaction():
            own.execute(f'insert into "{schema}".done values (%s)', (job.id,))
            job.output(args.n)
            job.complete_tx(own)
            if args.n == 2 and job.attempt == 1:
                raise ValueError("rolls back")

    catalog.kind_named("note").handler = ThreadHandler(handler, True)
    await testing.prepare(dsn, schema=schema, catalog=catalog)
    async with Client(database.settings, catalog=catalog) as client:
        first, second = await client.insert(Note(1)), await client.insert(Note(2))
    drained = await testing.drain(dsn, queues=["default"], schema=schema, catalog=catalog)
    assert (drained.completed, drained.failed) == (1, 1)
    assert database.sql("select id from {s}.done") == [(first,)]
    assert database.sql("select id, output::text from {s}.history where outcome = 'completed'") == [(first, "1")]
    assert database.sql("select id, attempt from {s}.job") == [(second, 1)]


async def test_a_snooze_until_a_time_is_due_at_that_time(
    database: Fresh, catalog: Catalog, aconn: AsyncConnection
) -> None:
    dsn: Any = database.settings.database.dsn
    schema = database.settings.database.schema
    until = database.one("select now()") + dt.timedelta(hours=1)

    async def handler(args: Note, job: Job) -> None:
        raise Snooze(until=until)

    catalog.kind_named("note").handler = handler
    await testing.prepare(dsn, schema=schema, catalog=catalog)
    async with Client(database.settings, catalog=catalog) as client:
        await client.insert(Note(1))
    await testing.drain(dsn, queues=["default"], schema=schema, catalog=catalog)
    async with aconn.transaction(force_rollback=True):
        ran = await testing.run_inline(aconn, Note(2), schema=schema, catalog=catalog)
    assert ran.delay_s is not None
    assert 0 <= 3600 - ran.delay_s < 600
    off = abs((database.one("select run_at from {s}.job") - until).total_seconds())
    assert off < 30  # the time that the outcome took to be written, on a slow machine
