"""The platform's statements: each prepares on every supported PostgreSQL, rides indexes, and is used."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
import pytest
from psycopg import pq, sql

import handlers
import wqcore
from handlers import platform as platform_settings
from handlers.store import SETTINGS
from tests.fix_pg import Fresh
from wqcore.db import migrate
from wqcore.db.statements import without_comments

FOLDER = Path(handlers.__file__).parent
NAMES = sorted(path.stem for path in (FOLDER / "sql").glob("*.sql"))
SOURCE = "\n".join(path.read_text("utf-8") for path in FOLDER.rglob("*.py"))
READ_WHOLE = {"stale_executions", "wake_queues", "revive_schedules"}
"""Sweeps: a few times a minute they look at all that is open."""


@pytest.fixture
def statements(database: Fresh) -> wqcore.Statements:
    """The statements for a schema with an odd name, whose tables are there."""
    line = migrate.Line(platform_settings.SQL / "migrations", 'pla"t; form')
    migrate.migrate(database.conn, line)
    return wqcore.Statements(line.schema, platform_settings.SQL, names={"wqcore": database.schema})


def test_every_statement_prepares_whatever_the_schemas_are_called(
    database: Fresh, statements: wqcore.Statements
) -> None:
    for name in NAMES:
        _prepare(database, name, statements[name].decode())


def test_no_statement_reads_a_whole_table(database: Fresh, statements: wqcore.Statements) -> None:
    for name, value in SETTINGS.items():
        database.conn.execute(sql.SQL("set {} = {}").format(sql.Identifier(name), sql.Literal(value)))
    read: dict[str, list[str]] = {}
    for name in NAMES:
        parameters = _prepare(database, name, statements[name].decode())
        nothing = f"({', '.join(['null'] * parameters)})" if parameters else ""
        plan = database.conn.execute(f"explain execute {name}{nothing}").fetchall()  # type: ignore[call-overload]
        tables = [line.strip() for (line,) in plan if "Seq Scan" in line]
        if tables:
            read[name] = tables
    assert set(read) <= READ_WHOLE, read
    assert set(NAMES) >= READ_WHOLE


@pytest.mark.parametrize("name", NAMES)
def test_every_file_says_what_it_promises_fits_the_cache_of_psycopg_and_is_used(name: str) -> None:
    text = (FOLDER / "sql" / f"{name}.sql").read_text("utf-8")
    assert text.startswith("-- ")
    assert len(without_comments(text)) < 4096
    assert ";" not in without_comments(text)
    assert re.search(rf'"{name}"', SOURCE), "no handler names it"


def _prepare(database: Fresh, name: str, text: str) -> int:
    """PREPARE through the protocol, which leaves the types of parameters to the server; how many there are."""
    numbers: dict[str, str] = {}

    def number(match: re.Match[str]) -> str:
        return numbers.setdefault(match[1], f"${len(numbers) + 1}")

    text = re.sub(r"%\((\w+)\)s", number, text).replace("%%", "%")
    result = database.conn.pgconn.prepare(name.encode(), text.encode(), [0] * len(numbers))
    if result.status != pq.ExecStatus.COMMAND_OK:
        raise psycopg.ProgrammingError(f"{name}: {result.error_message.decode()}")
    return len(numbers)
