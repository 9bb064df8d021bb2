"""A program's own migrations, statements and client: applied once, refused where they must be, the same in all processes."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psycopg
import pytest

import wqcore
from tests.fix_pg import Fresh, database, empty_dsn, pg, schema, settings
from wqcore import launch, testing
from wqcore.db import migrate
from wqcore.resource import use_app_settings
from wqcore.settings import Database, Queue

__all__ = ["database", "empty_dsn", "pg", "schema", "settings"]


class Shop(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: str = 'sh"op'


@wqcore.kind("ownTables")
class OwnTables(msgspec.Struct, frozen=True):
    n: int


@wqcore.kind("ownTablesNext")
class OwnTablesNext(msgspec.Struct, frozen=True):
    n: int


@wqcore.handler
async def own_tables(args: OwnTables) -> None:
    client = await wqcore.current_client()
    await client.insert(OwnTablesNext(args.n))


@wqcore.handler
async def own_tables_next(args: OwnTablesNext) -> None:
    assert await wqcore.current_client() is await wqcore.current_client()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A declared folder of migrations with one file; what other modules declared is left out."""
    monkeypatch.setattr(migrate, "_declared", [])
    (tmp_path / "0001_first.sql").write_text("create table {schema}.thing (n integer);")
    wqcore.migrations(tmp_path, lambda: Shop().schema)
    yield tmp_path
    use_app_settings({})


async def things(dsn: str) -> int:
    with psycopg.connect(dsn, autocommit=True) as conn:
        return conn.execute('select count(*) from "sh""op".thing').fetchall()[0][0]


async def test_declared_migrations_are_applied_once_and_a_later_file_follows(empty_dsn: str, folder: Path) -> None:
    await testing.prepare(empty_dsn)
    await testing.prepare(empty_dsn)
    (folder / "0002_row.sql").write_text("insert into {schema}.thing values (1);")
    await testing.prepare(empty_dsn)
    await testing.prepare(empty_dsn)
    assert await things(empty_dsn) == 1


def test_a_master_that_must_not_migrate_refuses_and_names_schema_and_remedy(database: Fresh, folder: Path) -> None:
    careful = msgspec.structs.replace(
        database.settings, database=Database(dsn=database.dsn, schema=database.schema, migrate="explicit")
    )
    with pytest.raises(wqcore.SchemaError, match=re.escape("""'sh"op' is at version 0""") + ".*wqcore migrate"):
        launch.bring_all(careful, database.dsn, lambda text: None)
    launch.bring_all(database.settings, database.dsn, lambda text: None)
    launch.bring_all(careful, database.dsn, lambda text: None)


def test_a_schema_newer_than_the_program_is_refused(database: Fresh, folder: Path) -> None:
    (folder / "0002_row.sql").write_text("insert into {schema}.thing values (1);")
    launch.bring_all(database.settings, database.dsn, lambda text: None)
    (folder / "0002_row.sql").unlink()
    with pytest.raises(wqcore.SchemaError, match=r"has version 2, but this program knows versions up to 1"):
        launch.bring_all(database.settings, database.dsn, lambda text: None)


def test_a_migration_that_fails_leaves_nothing_behind_and_can_be_mended(database: Fresh, folder: Path) -> None:
    (folder / "0001_first.sql").write_text("create table {schema}.thing (n integer); select 1/0;")
    with pytest.raises(psycopg.errors.DivisionByZero):
        launch.bring_all(database.settings, database.dsn, lambda text: None)
    (folder / "0001_first.sql").write_text("create table {schema}.thing (n integer);")
    launch.bring_all(database.settings, database.dsn, lambda text: None)


def test_statements_quote_their_schema_and_their_names(tmp_path: Path) -> None:
    (tmp_path / "go.sql").write_text("-- says {other}\nselect {other}.f(%(x)s) from {schema}.t")
    statements = wqcore.Statements('a"b', tmp_path, names={"other": "c d"})
    assert statements["go"] == b'select "c d".f(%(x)s) from "a""b".t'
    with pytest.raises(FileNotFoundError, match=r"gone\.sql"):
        statements["gone"]


async def test_a_handler_inserts_what_follows_with_the_client_of_its_worker(empty_dsn: str) -> None:
    await testing.prepare(empty_dsn, queues={"default": Queue(workers=4)})
    async with wqcore.Client(dsn=empty_dsn) as client:
        await client.insert(OwnTables(3))
    assert (await testing.drain(empty_dsn)).completed == 2


async def test_there_is_no_current_client_outside_of_workers_and_attached_programs(
    database: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    # what other modules of this process have declared is left out; the name wqcore.resource is the function
    monkeypatch.setattr(sys.modules["wqcore.resource"], "_declared", [])
    monkeypatch.setattr(migrate, "_declared", [])
    with pytest.raises(wqcore.ConfigError, match="wqcore.attached"):
        await wqcore.current_client()
    async with wqcore.attached(database.settings) as client:
        assert await wqcore.current_client() is client
        assert (client.dsn, client.schema) == (database.dsn, database.schema)
        await client.insert(OwnTables(1))
    with pytest.raises(wqcore.ConfigError, match="wqcore.attached"):
        await wqcore.current_client()


async def test_an_attached_program_refuses_settings_of_the_app_that_do_not_fit(
    database: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["wqcore.resource"], "_declared", [])  # the name wqcore.resource is the function
    wqcore.settings_for("shop", Shop)
    wrong = msgspec.structs.replace(database.settings, app={"shop": {"schema": 3}})
    with pytest.raises(wqcore.ConfigError, match=r"app\.shop\.schema: Expected `str`, got `int`"):
        async with wqcore.attached(wrong):
            pass
    use_app_settings({})
