"""`wqcore.testing`: one job inside a transaction of the test, what was inserted, and time that passes."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import psycopg
import pytest
import pytest_asyncio
from psycopg.rows import dict_row

import wqcore
from tests.fix_pg import Fresh
from wqcore import testing
from wqcore.catalog import Catalog, Kind
from wqcore.db.connect import AsyncConnection
from wqcore.job import Job


class Step(msgspec.Struct, rename="camel"):
    what: str = ""
    user_id: int = 0


class Other(msgspec.Struct):
    n: int = 0


class Desk:
    """A prepared database and an asyncio connection to it, which the handler of `step` uses too."""

    def __init__(self, database: Fresh, conn: AsyncConnection, catalog: Catalog) -> None:
        self.database = database
        self.conn = conn
        self.catalog = catalog
        self.other: AsyncConnection | None = None

    async def run(self, args: msgspec.Struct, **options: Any) -> testing.Ran:
        return await testing.run_inline(
            self.conn, args, catalog=self.catalog, schema=self.database.schema, **options
        )

    def states(self) -> list[tuple[Any, ...]]:
        """What others see: committed jobs only."""
        return self.database.sql("select state, attempt from {s}.jobs order by id")

    async def handle(self, args: Step, job: Job) -> None:
        await self.conn.execute("insert into touched values (%s, %s)", (job.id, args.user_id))
        match args.what:
            case "output":
                job.progress(0.5)
                job.output({"user": args.user_id})
            case "fail":
                raise ValueError("as asked")
            case "snooze":
                raise wqcore.Snooze(60)
            case "cancel":
                raise wqcore.Cancel("not now")
            case "discard":
                raise wqcore.Discard("never")
            case "retry":
                raise wqcore.Retry(after=7)
            case "hang":
                await asyncio.sleep(3600)
            case "sql":
                await self.conn.execute("select 1/0")
            case "complete":
                job.output("written with it")
                await job.complete_tx(self.conn)
            case "elsewhere":
                assert self.other is not None
                await job.complete_tx(self.other)
            case "commit":
                await self.conn.execute("commit")


@pytest_asyncio.fixture
async def desk(database: Fresh, aconn: AsyncConnection) -> AsyncIterator[Desk]:
    catalog = Catalog()
    for name, args_type in (("step", Step), ("other", Other)):
        catalog.declare(
            Kind(
                name, args_type, queue="default", serial_key=None, priority=1, max_attempts=3, timeout_s=0.5,
                backoff=lambda attempt: 60.0 * attempt, planned=False,
            )
        )
    desk = Desk(database, aconn, catalog)
    found = catalog.get("step")
    assert found is not None
    found.handler = desk.handle
    found.timeout_s = 30.0
    await aconn.execute("create table touched (job bigint, user_id bigint)")
    yield desk


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("", {"state": "completed"}),
        ("output", {"state": "completed", "output": {"user": 5}}),
        ("complete", {"state": "completed"}),
        ("fail", {"state": "retryable", "error": "as asked", "error_class": "ValueError", "delay_s": 60.0}),
        ("retry", {"state": "retryable", "delay_s": 7.0, "error_class": "Retry"}),
        ("snooze", {"state": "scheduled", "delay_s": 60.0, "error": None}),
        ("cancel", {"state": "cancelled", "error": "not now"}),
        ("discard", {"state": "discarded", "error": "never"}),
        ("sql", {"state": "retryable", "error": "division by zero", "error_class": "DivisionByZero"}),
    ],
)
async def test_a_run_returns_its_outcome_and_a_rollback_undoes_it_all(
    desk: Desk, what: str, expected: dict[str, Any]
) -> None:
    async with desk.conn.transaction(force_rollback=True):
        ran = await desk.run(Step(what, 5))
        assert {name: getattr(ran, name) for name in expected} == expected
        assert desk.states() == []
        here = await (await desk.conn.execute("select id, state from wqcore.jobs")).fetchall()
        assert here == [(ran.id, expected["state"])]
    assert desk.states() == []
    assert desk.database.sql("select * from touched") == []
    assert desk.database.sql("select * from {s}.shard") == []


async def test_a_commit_keeps_the_outcome_and_what_the_handler_wrote(desk: Desk) -> None:
    async with desk.conn.transaction():
        done = await desk.run(Step("output", 1))
        failed = await desk.run(Step("fail", 2))
    assert desk.states() == [("completed", 1), ("retryable", 1)]
    assert desk.database.sql("select job from touched order by job") == [(done.id,), (failed.id,)]
    assert desk.database.one("select output from {s}.jobs where state = 'completed'") == {"user": 1}
    assert desk.database.sql("select count(*) from {s}.shard") == [(0,)]


async def test_complete_tx_keeps_the_output(desk: Desk) -> None:
    async with desk.conn.transaction():
        await desk.run(Step("complete"))
    assert desk.database.sql("select state, output from {s}.jobs") == [("completed", "written with it")]


async def test_a_last_attempt_discards_and_options_are_those_of_an_insert(desk: Desk) -> None:
    async with desk.conn.transaction():
        ran = await desk.run(Step("fail"), max_attempts=1, queue="mail", serial_key="k", job_key="j")
    assert ran.state == "discarded"
    assert desk.database.sql("select queue, serial_key, job_key, outcome from {s}.history") == [
        ("mail", "k", "j", "discarded")
    ]


async def test_a_handler_over_its_time_is_cancelled(desk: Desk) -> None:
    kind = desk.catalog.get("step")
    assert kind is not None
    kind.timeout_s = 0.1
    async with desk.conn.transaction():
        ran = await desk.run(Step("hang"))
    assert ran.state == "retryable"
    assert ran.error == "timed out after 0.1 s"


async def test_a_run_without_a_transaction_is_refused(desk: Desk) -> None:
    with pytest.raises(wqcore.WqcoreError, match=r"async with conn.transaction\(\)"):
        await desk.run(Step())
    assert desk.states() == []


async def test_complete_tx_on_another_connection_says_which_one_to_use(desk: Desk) -> None:
    async with await psycopg.AsyncConnection.connect(desk.database.dsn) as desk.other:
        with pytest.raises(wqcore.LeaseLost, match="the connection that run_inline was given"):
            async with desk.conn.transaction():
                await desk.run(Step("elsewhere"))
    assert desk.states() == []


async def test_a_handler_that_ends_the_transaction_is_told_apart(desk: Desk) -> None:
    await desk.conn.set_autocommit(False)
    with pytest.raises(wqcore.WqcoreError, match="committed or rolled back"):
        await desk.run(Step("commit"))


async def test_a_unique_job_that_exists_is_not_run(desk: Desk) -> None:
    async with desk.conn.transaction():
        first = await desk.run(Step("fail"), unique=wqcore.Unique())
        with pytest.raises(wqcore.InsertError, match=f"job {first.id} exists already"):
            await desk.run(Step("fail"), unique=wqcore.Unique())


async def test_rows_as_dicts_do_not_matter(desk: Desk) -> None:
    desk.conn.row_factory = dict_row
    async with desk.conn.transaction():
        ran = await desk.run(Step("complete"))
        assert await testing.assert_inserted(desk.conn, "step") == [ran.id]
    assert desk.conn.row_factory is dict_row


async def test_inserted_jobs_are_found_by_what_they_are(desk: Desk) -> None:
    async with wqcore.Client(desk.database.settings, catalog=desk.catalog) as client, desk.conn.transaction():
        first = await client.insert_tx(desk.conn, Step("a", 1), serial_key="k", priority=5)
        second = await client.insert_tx(desk.conn, Step("a", 2), queue="mail", job_key="j")
        conn, here = desk.conn, {"catalog": desk.catalog}
        assert await testing.assert_inserted(conn, "step", n=2) == [first, second]
        assert await testing.assert_inserted(conn, Step, args=Step("a", 1), **here) == [first]
        assert await testing.assert_inserted(conn, Step, args={"userId": 2}, **here) == [second]
        assert await testing.assert_inserted(conn, "step", args={"what": "a"}, n=None) == [first, second]
        assert await testing.assert_inserted(conn, "step", queue="mail", job_key="j", state="available") == [second]
        assert await testing.assert_inserted(conn, "step", serial_key="k", priority=5) == [first]
        assert await testing.assert_inserted(conn, "other", n=0) == []
        with pytest.raises(AssertionError) as caught:
            await testing.assert_inserted(conn, Step, args=Step("b", 1), queue="mail", **here)
    assert str(caught.value).splitlines() == [
        "expected jobs: 1 of kind step with queue=mail, args=Step(what='b', user_id=1); found 0. There are:",
        f"  job {first}: available queue=default priority=5 serial_key=k args={{'what': 'a', 'userId': 1}}",
        f"  job {second}: available queue=mail priority=1 job_key=j args={{'what': 'a', 'userId': 2}}",
    ]


def test_inserted_jobs_are_found_without_asyncio_and_other_kinds_are_named(database: Fresh) -> None:
    with pytest.raises(AssertionError, match="no job at all"):
        testing.assert_inserted(database.conn, "step")
    database.sql("insert into {s}.job (queue, slot, kind, args) values ('default', 0, 'other', '{{\"n\": 1}}')")
    assert len(testing.assert_inserted(database.conn, "other", args={"n": 1})) == 1
    with pytest.raises(AssertionError, match="none of this kind, but 1 of kind other"):
        testing.assert_inserted(database.conn, "step")
    with pytest.raises(AssertionError, match="0 of kind other; found 1"):
        testing.assert_inserted(database.conn, "other", n=0)
    with pytest.raises(wqcore.UnknownKind, match="Step"):
        testing.assert_inserted(database.conn, Step)


async def test_time_travel_makes_what_was_scheduled_due(desk: Desk) -> None:
    now = dt.datetime.now(dt.UTC)
    async with wqcore.Client(desk.database.settings, catalog=desk.catalog) as client:
        soon = await client.insert(Step(), run_at=now + dt.timedelta(hours=2))
        await client.insert(Step(), run_at=now + dt.timedelta(hours=4))
    assert (await testing.drain(desk.database.dsn, catalog=desk.catalog)).completed == 0
    await testing.travel(desk.conn, hours=2, minutes=1)
    assert (await testing.drain(desk.database.dsn, catalog=desk.catalog)).completed == 1
    assert desk.database.sql("select id from {s}.history") == [(soon,)]


def test_time_travel_moves_all_times_but_those_of_workers(database: Fresh) -> None:
    times = {
        "job": ["run_at", "created_at"],
        "history": ["created_at", "attempted_at", "finished_at", "expires_at"],
        "schedule": ["last_tick", "next_tick", "created_at", "updated_at"],
        "cancel_request": ["asked_at"],
        "progress": ["at"],
        "queue": ["paused_at", "created_at"],
    }
    database.sql("insert into {s}.job (queue, slot, kind, args, run_at) values ('default', 0, 'k', '{{}}', now())")
    database.sql(
        "insert into {s}.history (id, queue, kind, outcome, priority, attempt, max_attempts, deaths, created_at, "
        "attempted_at, finished_at, expires_at, xid, args) select 1, 'default', 'k', 'completed', 1, 1, 3, 0, now(), "
        "now(), now(), now() + interval '1 day', 1, '{{}}'"
    )
    database.sql(
        "insert into {s}.schedule (name, source, kind, every_s, last_tick, next_tick) "
        "values ('s', 'api', 'k', 60, now(), now())"
    )
    database.sql("insert into {s}.cancel_request (job, queue, reason) values (1, 'default', '')")
    database.sql("insert into {s}.progress (job, fraction) values (1, 0.5)")
    database.sql("select {s}.pause()")
    database.sql("insert into {s}.process (id, host, pid, version) values (gen_random_uuid(), '', 1, '')")

    def read() -> dict[str, Any]:
        columns = {table: database.sql(f"select {', '.join(names)} from {{s}}.{table}")[0] for table, names in times.items()}
        return columns | {"process": database.sql("select beat_at, started_at from {s}.process")[0]}

    before = read()
    testing.travel(database.conn, dt.timedelta(days=3), hours=1)
    after = read()
    moved = dt.timedelta(days=3, hours=1)
    assert {table: [old - new for old, new in zip(before[table], after[table], strict=True)] for table in times} == {
        table: [moved] * len(names) for table, names in times.items()
    }
    assert after["process"] == before["process"]


def test_time_travel_goes_forward_only(database: Fresh) -> None:
    with pytest.raises(ValueError, match="into the future only"):
        testing.travel(database.conn, hours=-1)


