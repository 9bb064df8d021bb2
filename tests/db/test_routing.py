"""A client of several databases sends each request to the one that has the queue, and refuses what it cannot send right."""

from __future__ import annotations

import asyncio
import itertools
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from psycopg import sql

from tests.fix_pg import Server
from wqcore import Client, JobFilter, SyncClient, launch, testing
from wqcore.backoff import river
from wqcore.catalog import Catalog, Kind
from wqcore.control.outcomes import Position
from wqcore.errors import (
    ConfigError,
    DatabaseUnavailable,
    InsertError,
    InvalidRequest,
    UnknownQueue,
    WrongDatabase,
)
from wqcore.recurring import Timetable, declared_at
from wqcore.settings import Database, Queue, Settings, load

_numbers = itertools.count(1)
QUEUES = {
    "default": Queue(slots=2), "mail": Queue(slots=2, database="bulk"), "clicks": Queue(slots=2, database="bulk")
}  # fmt: skip
ALL = Position(0, 0, 0)


class Order(msgspec.Struct):
    n: int


class Letter(msgspec.Struct):
    n: int


async def order(args: Order) -> None: ...
async def letter(args: Letter) -> None: ...


def _catalog() -> Catalog:
    catalog = Catalog()
    for name, args_type, queue in (("order", Order, "default"), ("letter", Letter, "mail")):
        kind = Kind(
            name, args_type, queue=queue, serial_key=None, priority=1, max_attempts=3, timeout_s=60, backoff=river,
            planned=False,
        )  # fmt: skip
        catalog.declare(kind)
    for handler in (order, letter):
        catalog.attach(handler)
    return catalog


catalog = _catalog()


class Two:
    """Two databases, the settings over both, and a connection to each."""

    def __init__(self, dsns: list[str]) -> None:
        self.dsns = dict(zip(("default", "bulk"), dsns, strict=True))
        self.settings = Settings(
            database=Database(dsn=dsns[0], migrate="auto"),
            databases={"bulk": Database(dsn=dsns[1], migrate="auto")},
            queues=QUEUES,
        )
        launch.prepare(self.settings, dsns[0], lambda text: None)

    def waiting(self) -> dict[str, list[str]]:
        """The kinds of the jobs that wait, by database."""
        found = {}
        for name, dsn in self.dsns.items():
            with psycopg.connect(dsn) as conn:
                rows = conn.execute("select kind from wqcore.job order by id").fetchall()
                found[name] = [kind for (kind,) in rows]
        return found


@pytest.fixture
def two(pg: Server) -> Iterator[Two]:
    names = [f"two{next(_numbers)}" for _ in range(2)]
    with psycopg.connect(pg.dsn(), autocommit=True) as admin:
        for name in names:
            admin.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        yield Two([pg.dsn(name) for name in names])
        for name in names:
            admin.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.fixture
def client(two: Two) -> Iterator[SyncClient]:
    with SyncClient(two.settings, catalog=catalog) as client:
        yield client


def test_each_job_is_inserted_where_its_queue_is(two: Two, client: SyncClient) -> None:
    assert client.insert(Order(1)).database == "default"
    assert client.insert(Letter(1)).database == "bulk"
    assert client.enqueue("letter", {"n": 2}).database == "bulk"
    assert client.insert(Order(2), queue="clicks").database == "bulk"
    assert client.insert_many([Letter(3), Letter(4)]) == 2
    assert client.insert_many([]) == 0
    assert two.waiting() == {"default": ["order"], "bulk": ["letter", "letter", "order", "letter", "letter"]}


async def test_the_client_for_asyncio_does_the_same(two: Two) -> None:
    async with Client(two.settings, catalog=catalog) as client:
        ids = [await client.insert(args) for args in (Order(1), Letter(1))]
        assert [job.database for job in ids] == ["default", "bulk"]
        assert await client.insert_many([Letter(3)]) == 1
        with pytest.raises(InsertError, match="'default' is in database default.*database bulk.*once for each"):
            await client.insert_many([Letter(5), Order(5)])
        async with await psycopg.AsyncConnection.connect(two.dsns["default"]) as conn:
            await client.insert_tx(conn, Order(7))
            with pytest.raises(WrongDatabase, match="'mail' is in database bulk.*leads to default"):
                await client.insert_tx(conn, Letter(7))
        assert two.waiting() == {"default": ["order", "order"], "bulk": ["letter", "letter"]}
        both = await asyncio.gather(*(client.wait(job, timeout_s=30) for job in ids), _worked(two))
        assert [info.kind for info in both[:2]] == ["order", "letter"]
        events = client.outcomes(queues=["mail"], since=str(ALL))
        assert (await anext(events)).id.database == "bulk"  # type: ignore[union-attr]
        assert await client.count() == 4


async def _worked(two: Two) -> None:
    for name in two.dsns:
        part = two.settings.part(name)
        await testing.drain(two.dsns[name], queues=dict(part.queues), catalog=catalog)


def test_a_bulk_insert_over_two_databases_is_refused_and_leaves_nothing(two: Two, client: SyncClient) -> None:
    items = [*(Order(n) for n in range(2000)), Letter(1)]
    with pytest.raises(InsertError, match="'mail' is in database bulk.*first job went to database default.*nothing"):
        client.insert_many(items)
    assert two.waiting() == {"default": [], "bulk": []}


def test_a_connection_to_the_wrong_database_is_refused_and_its_transaction_goes_on(
    two: Two, client: SyncClient, pg: Server
) -> None:
    with psycopg.connect(two.dsns["default"]) as conn:
        with pytest.raises(WrongDatabase, match=r"'mail' is in database bulk \(.*dbname=two\d+.*leads to default \(.*dbname=two"):
            client.insert_tx(conn, Letter(1))
        client.insert_tx(conn, Order(1))
        conn.commit()
        with pytest.raises(WrongDatabase):
            client.enqueue("letter", {"n": 1}, tx=conn)
    with psycopg.connect(pg.dsn()) as conn:  # one without a schema of ours
        with pytest.raises(WrongDatabase, match="leads to another one .*dbname=postgres"):
            client.insert_tx(conn, Order(1))
        assert conn.execute("select 1").fetchone() == (1,), "the transaction goes on"
    with psycopg.connect(two.dsns["bulk"], row_factory=psycopg.rows.dict_row) as conn:
        client.insert_tx(conn, Letter(2))
    assert two.waiting() == {"default": ["order"], "bulk": ["letter"]}


def test_a_connection_is_asked_for_its_database_once_and_with_one_database_never(two: Two, client: SyncClient) -> None:
    asked: list[str] = []

    class Asked(psycopg.Cursor[Any]):
        def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
            asked.append(query.decode() if isinstance(query, bytes) else str(query))
            return super().execute(query, *args, **kwargs)

    with psycopg.connect(two.dsns["bulk"], cursor_factory=Asked) as conn:
        for n in range(3):
            client.insert_tx(conn, Letter(n))
        assert sum("applied_at" in query for query in asked) == 1
        with SyncClient(two.settings.part("bulk"), catalog=catalog) as single:
            asked.clear()
            single.insert_tx(conn, Letter(9))
            assert len(asked) == 1


def test_ids_go_where_their_insert_went_and_a_plain_number_is_refused(two: Two, client: SyncClient) -> None:
    first, second = client.insert(Order(1)), client.insert(Letter(1))
    assert int(first) == int(second), "ids are unique within one database only"
    assert [client.job(job).kind for job in (first, second)] == ["order", "letter"]  # type: ignore[union-attr]
    for refused in (client.job, client.cancel, client.retry, client.delete, client.wait, client.result):
        with pytest.raises(InvalidRequest, match=r"client.at\(<database>\)"):
            refused(int(first))
    assert client.at("bulk").job(int(second)).kind == "letter"  # type: ignore[union-attr]
    with pytest.raises(InvalidRequest, match="no database 'default'"):
        client.at("bulk").cancel(first)
    [found] = client.jobs(JobFilter(queues=["mail"]))
    assert client.cancel(pickle.loads(pickle.dumps(found.id))).changed == 1
    assert two.waiting() == {"default": ["order"], "bulk": []}
    assert client.cancel([first, client.insert(Letter(2))]).changed == 2
    assert two.waiting() == {"default": [], "bulk": []}


def test_filters_go_to_the_databases_of_their_queues(two: Two, client: SyncClient) -> None:
    for n in range(3):
        client.insert(Order(n))
        client.insert(Letter(n))
    assert client.count() == 6
    assert client.count(JobFilter(queues=["mail"])) == 3
    with pytest.raises(InvalidRequest, match="a page of jobs is of one database.*default, bulk"):
        client.jobs()
    assert {info.kind for info in client.jobs(JobFilter(queues=["default"]))} == {"order"}
    told: list[int] = []
    assert client.cancel(JobFilter(states=["available"]), progress=lambda sum_: told.append(sum_.changed)).changed == 6
    assert told[-1] == 6
    for refused in (client.outcomes, lambda **_: client.position()):
        with pytest.raises(InvalidRequest, match="a stream of outcomes is of one database"):
            list(itertools.islice(refused(kinds=["letter"]), 1))
    assert {event.kind for event in itertools.islice(client.outcomes(queues=["mail"], since=str(ALL)), 3)} == {"letter"}  # type: ignore[union-attr]
    assert client.at("bulk").position()


def test_queues_and_limits_are_changed_where_they_are(two: Two, client: SyncClient) -> None:
    assert client.pause("mail") == 1
    assert client.set_limits("mail", max_workers_total=3) == {"max_workers_total": 3}
    with psycopg.connect(two.dsns["bulk"]) as conn:
        query = "select name, paused_at is not null, limits::text from wqcore.queue order by 1"
        assert conn.execute(query).fetchall() == [("clicks", False, "{}"), ("mail", True, '{"max_workers_total": 3}')]
    assert client.pause() == 2
    assert client.resume() == 3
    with pytest.raises(UnknownQueue):
        client.pause("nope")


def test_a_job_key_is_taken_back_wherever_it_is(two: Two, client: SyncClient) -> None:
    client.insert(Letter(1), job_key="k")
    assert client.dequeue("k") is True
    assert client.dequeue("k") is False
    client.insert(Letter(1), job_key="k")
    with psycopg.connect(two.dsns["default"], autocommit=True) as conn:
        assert client.dequeue("k", tx=conn) is False, "that database has no such key"
    with psycopg.connect(two.dsns["bulk"], autocommit=True) as conn:
        assert client.dequeue("k", tx=conn) is True


def test_a_schedule_is_in_the_database_of_its_queue(two: Two, client: SyncClient) -> None:
    for dsn in two.dsns.values():
        with psycopg.connect(dsn, autocommit=True) as conn:
            launch.sync_kinds(conn, two.settings, catalog)
    client.set_schedule("nightly", Letter(1), cron="0 3 * * *")
    client.set_schedule("hourly", Order(1), every_s=3600)
    client.set_schedule("elsewhere", Order(1), every_s=3600, queue="clicks")
    with psycopg.connect(two.dsns["bulk"]) as conn:
        rows = conn.execute("select name from wqcore.schedule order by 1").fetchall()
        assert rows == [("elsewhere",), ("nightly",)]
    assert [info.name for info in client.schedules()] == ["elsewhere", "hourly", "nightly"]
    assert client.pause_schedule("nightly") is True
    assert client.job(client.trigger_schedule("nightly")).kind == "letter"  # type: ignore[union-attr]
    client.delete_schedule("nightly")
    assert two.waiting() == {"default": [], "bulk": ["letter"]}


def test_a_master_declares_only_the_schedules_of_its_database(two: Two) -> None:
    timetable = Timetable(catalog)
    timetable.declare("mails", Letter(1), every_s=60)
    timetable.declare("orders", Order(1), every_s=60)
    timetable.declare("moved", Order(1), every_s=60, queue="mail")
    found = {name: sorted(declared_at(two.settings, name, catalog, timetable)) for name in two.dsns}
    assert found == {"default": ["orders"], "bulk": ["mails", "moved"]}


def test_a_queue_that_the_configuration_does_not_name_is_found_where_it_is(two: Two) -> None:
    settings = msgspec.structs.replace(two.settings, queues={})
    with SyncClient(settings, catalog=catalog) as client:
        assert client.insert(Letter(1)).database == "bulk"
        with psycopg.connect(two.dsns["default"], autocommit=True) as conn:
            launch.sync_queues(conn, two.settings)
        with pytest.raises(UnknownQueue, match=r"'nope' for kind 'order'"):
            client.insert(Order(1), queue="nope")
        with pytest.raises(UnknownQueue, match=r"'mail' is in the databases default, bulk.*queues.mail.database"):
            client.insert(Letter(1))


def test_two_names_for_one_database_are_refused(two: Two) -> None:
    again = msgspec.structs.replace(two.settings.databases["bulk"], dsn=two.dsns["default"] + " application_name=other")
    settings = msgspec.structs.replace(two.settings, databases={"bulk": again})
    with pytest.raises(ConfigError, match=r"default \(.*bulk \(.* are one"), SyncClient(settings, catalog=catalog):
        pass


def test_a_database_that_is_away_stops_only_what_goes_there(two: Two, pg: Server) -> None:
    bulk = str(psycopg.conninfo.conninfo_to_dict(two.dsns["bulk"])["dbname"])
    with psycopg.connect(pg.dsn(), autocommit=True) as admin:
        admin.execute(sql.SQL("alter database {} with allow_connections false").format(sql.Identifier(bulk)))
        with SyncClient(two.settings, catalog=catalog) as client:
            client.insert(Order(1))
            with pytest.raises(DatabaseUnavailable, match=bulk):
                client.insert(Letter(1))
            admin.execute(sql.SQL("alter database {} with allow_connections true").format(sql.Identifier(bulk)))
            client.insert(Letter(2))
    assert two.waiting() == {"default": ["order"], "bulk": ["letter"]}


CONFIG = """
[database]
dsn = "{default}"
[databases.bulk]
dsn = "{bulk}"
[process]
handlers = []
{more}
[queues.default]
[queues.mail]
database = "bulk"
"""


def _problems(folder: Path, more: str = "", text: str = CONFIG, environ: dict[str, str] | None = None) -> list[str]:
    path = folder / "c.toml"
    path.write_text(text.format(default="dbname=a", bulk="dbname=b", more=more))
    try:
        load(path, environ=environ or {}).database_here()
    except ConfigError as error:
        return error.problems
    return []


def test_a_master_runs_queues_of_one_database(tmp_path: Path) -> None:
    [problem] = _problems(tmp_path)
    assert "bulk has mail; default has default; choose one by --group" in problem
    assert _problems(tmp_path, 'group = "mail"') == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("[queues.default]", "[queues.default]\ngroup = \"mail\""), "group 'mail' has queues in the databases bulk, default"),
        (('database = "bulk"', 'database = "bulg"'), "queues.mail.database = 'bulg': there is no such table"),
        (("[databases.bulk]", "[databases.Bulk]"), "databases.Bulk: call it by small letters"),
        (("[databases.bulk]", "[databases.bulk]\nembedded = true"), "databases.bulk.embedded: only [database]"),
        (('dsn = "{bulk}"', ""), "databases.bulk.dsn is not set"),
        (('dsn = "{bulk}"', 'dsn = "{default}"'), "databases.bulk is [database] once more"),
        (('dsn = "{bulk}"', 'dsn = "{bulk}"\nschema = "pg_x"'), "databases.bulk.schema 'pg_x'"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_by_its_name(tmp_path: Path, change: tuple[str, str], problem: str) -> None:
    assert [found for found in _problems(tmp_path, text=CONFIG.replace(*change)) if problem in found]


def test_the_dsn_of_a_further_database_can_come_from_the_environment(tmp_path: Path) -> None:
    text = CONFIG.replace('dsn = "{bulk}"', "")
    environ = {"WQCORE_DATABASES__BULK__DSN": "dbname=b", "WQCORE_PROCESS__GROUP": "mail"}
    assert _problems(tmp_path, text=text, environ=environ) == []
