"""Every statement is one statement that each supported PostgreSQL can prepare, whatever the schema is called."""

from __future__ import annotations

import re

import psycopg
import pytest
from psycopg import pq

from tests.fix_pg import ODD_SCHEMAS, Fresh
from wqcore.db import statements
from wqcore.db.statements import Statements, without_comments


@pytest.mark.parametrize("schema", ["wqcore", *ODD_SCHEMAS], indirect=True)
def test_every_statement_prepares_whatever_the_schema_is_called(database: Fresh) -> None:
    for name in statements.names():
        if name != "copy":
            _prepare(database, name)


def test_the_copy_takes_a_row(database: Fresh) -> None:
    with database.conn.cursor() as cursor, cursor.copy(database.statements["copy"]) as copy:
        copy.write_row(("default", 0, 1, None, "k", 3, None, None, "{}"))
    assert database.one("select count(*) from {s}.job") == 1


@pytest.mark.parametrize("name", statements.names())
def test_no_literal_holds_what_would_be_stripped_as_a_comment(name: str) -> None:
    text = statements._FOLDER.joinpath(f"{name}.sql").read_text("utf-8")
    for line in text.splitlines():
        before, dashes, _ = line.partition("--")
        assert not dashes or before.count("'") % 2 == 0, line


@pytest.mark.parametrize("name", statements.names())
def test_every_file_begins_with_what_it_promises_and_fits_the_cache_of_psycopg(name: str) -> None:
    text = statements._FOLDER.joinpath(f"{name}.sql").read_text("utf-8")
    assert text.startswith("-- ")
    assert len(without_comments(text)) < 4096
    assert ";" not in without_comments(text)


def _prepare(database: Fresh, name: str) -> None:
    """PREPARE through the protocol, which leaves the types of parameters to the server where we give none."""
    numbers: dict[str, str] = {}

    def number(match: re.Match[str]) -> str:
        return numbers.setdefault(match[1], f"${len(numbers) + 1}")

    text = re.sub(r"%\((\w+)\)s", number, Statements(database.schema)[name].decode()).replace("%%", "%")
    oids = [_OIDS.get(parameter, 0) for parameter in numbers]
    result = database.conn.pgconn.prepare(b"", text.encode(), oids)
    if result.status != pq.ExecStatus.COMMAND_OK:
        raise psycopg.ProgrammingError(f"{name}: {result.error_message.decode()}")


_OIDS = {"reason": 25, "shard": 20, "queue": 25, "n": 20, "turn": 20, "since": 20, "schema": 25}
