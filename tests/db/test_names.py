"""Names are any text of 1 to 128 bytes, and are quoted wherever they go; what cannot be a name is refused on every way in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest

from tests.fix_pg import Fresh
from wqcore import InsertOptions, launch
from wqcore.backoff import river
from wqcore.catalog import Catalog, Kind
from wqcore.client import SyncClient
from wqcore.errors import ConfigError, DeclarationError, InsertError, InvalidSchedule
from wqcore.settings import Database, Queue, Settings, load

ROOT = Path(__file__).parents[2]
ODD = [
    "o'dd\"; drop table wqcore.job; --",
    "$$;\\",
    "%s %(queue)s %",
    "{schema} {0}",
    "[/red] [bold]",
    "two\nlines\ttab",
    " blanks around ",
    "../../etc/passwd",
    "Grüße 🦆",
    "n" * 64,
    "ü" * 64,
]
BAD = {"": "empty", "n" * 129: "129 bytes", "ü" * 65: "130 bytes", "a\x00b": "NUL", "\ud800": "surrogate"}
BLANK = [" ", "\t \n"]


class Note(msgspec.Struct):
    n: int = 0


def declared(catalog: Catalog, name: str, **options: Any) -> Kind:
    given: dict[str, Any] = {
        "queue": "default", "serial_key": None, "priority": 1, "max_attempts": 3, "timeout_s": 60, "backoff": river,
        "planned": False,
    }  # fmt: skip
    kind = Kind(name, msgspec.defstruct(f"Note{len(catalog)}", [], bases=(Note,)), **(given | options))
    catalog.declare(kind)
    return kind


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    found = Catalog()
    for name in ("plain", *ODD):
        declared(found, name)
    return found


@pytest.fixture
def named(database: Fresh, catalog: Catalog) -> Iterator[tuple[Fresh, SyncClient]]:
    """A database that has a queue and a kind of each odd name, and a client for them."""
    settings = msgspec.structs.replace(
        database.settings, queues={"default": Queue(slots=4)} | {name: Queue(slots=2) for name in ODD}
    )
    launch.sync_queues(database.conn, settings)
    launch.sync_kinds(database.conn, settings, catalog)
    with SyncClient(settings, dsn=database.dsn, catalog=catalog) as client:
        yield database, client


# --- odd names are quoted ------------------------------------------------------------------------------------------------


def test_odd_names_go_through_the_client_and_sql_unchanged_and_hurt_nothing(named: tuple[Fresh, SyncClient]) -> None:
    database, client = named
    columns = "queue, kind, serial_key, job_key"
    expected = []
    for name in ODD:
        client.enqueue(name, {}, queue=name, serial_key=name, job_key=f"1{name[:100]}"[:63])
        client.insert_many([(client._catalog.parse(name, {})[1], InsertOptions(queue=name, serial_key=name))])
        database.sql(
            "select {s}.enqueue(%s, queue => %s, serial_key => %s, job_key => %s)", name, name, name, f"2{name[:100]}"[:63]
        )
        expected += [
            (name, name, name, f"1{name[:100]}"[:63]), (name, name, name, None), (name, name, name, f"2{name[:100]}"[:63])
        ]  # fmt: skip
    assert database.sql(f"select {columns} from {{s}}.job order by id") == expected
    for name in ODD:
        assert client.pause(name)
        assert client.resume(name)
        assert client.dequeue(f"1{name[:100]}"[:63])
        client.set_schedule(name, {}, kind=name, every_s=3600, queue=name)
        assert client.pause_schedule(name)
        client.delete_schedule(name)
    assert database.one("select count(*) from {s}.job") == 2 * len(ODD)


def test_every_odd_queue_has_a_channel_of_its_own_that_postgresql_can_listen_to(named: tuple[Fresh, SyncClient]) -> None:
    database, _ = named
    channels = [row[0] for row in database.sql("select channel from {s}.queue")]
    assert len(set(channels)) == len(channels) >= len(ODD)
    for channel in channels:
        assert len(channel) < 63
        database.conn.execute(f'listen "{channel}"'.encode())


def test_the_command_line_shows_and_takes_odd_names(named: tuple[Fresh, SyncClient], tmp_path: Path) -> None:
    database, _ = named
    names = [name for name in ODD if "\x00" not in name]
    (tmp_path / "odd.py").write_text(
        "import msgspec, wqcore\n"
        f"for number, name in enumerate({names!r}):\n"
        "    wqcore.kind(name, queue=name)(type(f'Note{number}', (msgspec.Struct,), {'__annotations__': {}}))\n"
    )
    tables = "".join(f"[queues.{json.dumps(name, ensure_ascii=False)}]\nslots = 2\n" for name in ["default", *names])
    config = tmp_path / "c.toml"
    config.write_text(
        f'[database]\ndsn = {json.dumps(database.dsn)}\n[process]\nhandlers = ["odd"]\n'
        + tables.replace("slots = 2", "slots = 4", 1)
    )

    def cli(*words: str) -> str:
        ran = subprocess.run(
            [sys.executable, "-m", "wqcore", "-c", str(config), *words],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "300"}, capture_output=True, text=True,
            timeout=60,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    (tmp_path / "jobs").write_text(
        "".join(json.dumps({"kind": name, "args": {}, "queue": name, "job_key": name}) + "\n" for name in names)
    )
    assert f"inserted {len(names)} jobs" in cli("insert", "--file", str(tmp_path / "jobs"))
    assert "as job" in cli("insert", "[/red] [bold]", "{}", "--queue", "[/red] [bold]", "--job-key", "[/red] [bold] 2")
    shown = cli("status")
    for name in names:
        if name.isprintable() and len(name) < 64:
            assert name.strip() in shown, name
    client_name = "[/red] [bold]"
    database.sql(
        "insert into {s}.schedule (name, source, kind, every_s) values (%s, 'api', %s, 60)", client_name, client_name
    )
    assert client_name in cli("schedules")
    assert client_name in cli("schedules", "trigger", client_name)


# --- what cannot be a name is refused ------------------------------------------------------------------------------------


FIELDS = ("kind", "queue", "serial_key", "job_key")


@pytest.mark.parametrize("way", ["client", "enqueue", "insert"])
def test_a_bad_name_is_refused_on_every_way_in_and_nothing_is_written(
    named: tuple[Fresh, SyncClient], way: str
) -> None:
    database, client = named

    def by_client(given: dict[str, Any]) -> None:
        client.enqueue(given.pop("kind"), {}, **given)

    def by_sql(given: dict[str, Any]) -> None:
        database.sql(f"select {{s}}.enqueue({', '.join(f'{key} => %s' for key in given)})", *given.values())

    def by_hand(given: dict[str, Any]) -> None:
        columns = {"queue": "default", "slot": 0, "args": "{}"} | given
        places = ", ".join(["%s"] * len(columns))
        database.sql(f"insert into {{s}}.job ({', '.join(columns)}) values ({places})", *columns.values())

    insert, refusals = {
        "client": (by_client, (InsertError,)),
        "enqueue": (by_sql, (psycopg.errors.InvalidParameterValue,)),
        "insert": (by_hand, (psycopg.errors.CheckViolation,)),
    }[way]
    for field in FIELDS:
        for name in BAD:
            # a NUL or a lone surrogate does not get as far as the server
            unsent = (psycopg.DataError, UnicodeEncodeError) if "\x00" in name or "\ud800" in name else ()
            with pytest.raises((*refusals, *unsent)):
                insert({"kind": "plain", field: name})
                pytest.fail(f"{field} {name!r} was accepted")
    assert database.one("select count(*) from {s}.job") == 0


def test_tables_of_names_refuse_what_cannot_be_read(database: Fresh) -> None:
    for text in (
        "insert into {s}.queue (name, slots, channel) values (%s, 1, 'c')",
        "insert into {s}.kind (name, stands_for, queue, priority, max_attempts) values (%s, 'plain', 'default', 1, 1)",
        "insert into {s}.schedule (name, source, kind, every_s) values (%s, 'api', 'plain', 1)",
    ):
        for name in ("", "n" * 129, *BLANK):
            with pytest.raises(psycopg.errors.CheckViolation):
                database.sql(text, name)
                pytest.fail(f"{name!r} was accepted by {text}")


@pytest.mark.parametrize("name", [*BAD, *BLANK], ids=[*BAD.values(), "blank", "blanks"])
def test_a_declaration_with_a_bad_name_is_refused(name: str) -> None:
    for options in ({"name": name}, {"name": "k", "queue": name}, {"name": "k", "aliases": (name,)}):
        with pytest.raises(DeclarationError):
            declared(Catalog(), **options)


@pytest.mark.parametrize("name", ["", "n" * 129, *BLANK], ids=["empty", "long", "blank", "blanks"])
def test_a_configuration_with_a_bad_name_is_refused(tmp_path: Path, name: str) -> None:
    quoted = json.dumps(name)
    for table in (
        f"[queues.{quoted}]", f'[schedules.{quoted}]\nkind = "k"\nevery_s = 5', f"[schedules.x]\nkind = {quoted}\nevery_s = 5",
        f'[schedules.x]\nkind = "k"\nqueue = {quoted}\nevery_s = 5',
    ):  # fmt: skip
        (tmp_path / "c.toml").write_text(f'[database]\ndsn = "x"\n{table}\n')
        with pytest.raises(ConfigError, match=r"(?s)(empty|129 bytes|blanks)"):
            load(tmp_path / "c.toml", environ={})


@pytest.mark.parametrize("schema", ["", " ", "\t", "pg_mine", "x" * 64, "ü" * 32, "a%b", "a\x00b", "\ud800"])
def test_a_bad_schema_is_refused(schema: str) -> None:
    assert [text for text in Settings(database=Database(dsn="x", schema=schema)).check() if "database.schema" in text]


def test_a_schedule_with_a_bad_name_is_refused(named: tuple[Fresh, SyncClient]) -> None:
    database, client = named
    for name in (*BAD, *BLANK):
        with pytest.raises(InvalidSchedule):
            client.set_schedule(name, {}, kind="plain", every_s=60)
    assert database.one("select count(*) from {s}.schedule") == 0


def test_a_key_may_be_blank_because_it_is_made_of_data(named: tuple[Fresh, SyncClient]) -> None:
    database, client = named
    client.enqueue("plain", {}, serial_key="  ", job_key=" ")
    assert database.sql("select serial_key, job_key from {s}.job") == [("  ", " ")]
