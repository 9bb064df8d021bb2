"""What the doctor asks: facts as plain values, each by a statement of its own; what was refused stays as its reason."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

from wqcore.db import faults, migrate
from wqcore.db.connect import Connection, connect_sync, describe
from wqcore.db.statements import Statements
from wqcore.errors import ConfigError, DatabaseUnavailable, SchemaError
from wqcore.settings import Settings
from wqcore.watch.status import COUNT_CAP

FOLDER = resources.files("wqcore.db") / "sql" / "doctor"
OWN = (
    "server", "sessions", "role", "role_settings", "tables", "indexes", "snapshots", "notify", "partitions", "kinds",
    "schedules", "processes",
)  # fmt: skip
ROUND_TRIPS = 9

Row = dict[str, Any]


@dataclass
class Facts:
    """What is known.

    Attributes:
        settings (Settings): the configuration that was looked at.
        kinds (frozenset of str): names and aliases of the kinds that the configured modules declare.
        rows (dict of str to list of rows): answers by the name of their statement.
        refused (dict of str to str): why a statement has no answer.
        unreachable (str | None): why there is no connection; then `rows` is empty.
        where (str): where the DSN leads, without a password.
        python, libpq (str): versions of this program's own.
        round_trip_s (float): the shortest of a few; 0 without a connection.
        ahead_s (float): how far the clock of this host is ahead of the database's, the round trip taken into account.
        schema_version, code_version (int): of wqcore's tables; 0 when they are not there.
        pid_of_protocol (int): the process id that the server told at the connection's start.
    """

    settings: Settings
    kinds: frozenset[str] = frozenset()
    rows: dict[str, list[Row]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    unreachable: str | None = None
    where: str = ""
    python: str = platform.python_version()
    libpq: str = ""
    round_trip_s: float = 0.0
    ahead_s: float = 0.0
    schema_version: int = 0
    code_version: int = 0
    pid_of_protocol: int = 0

    @property
    def has_schema(self) -> bool:
        """Whether the tables are there, seen or not."""
        return self.schema_version > 0 or bool(self.rows.get("role"))

    def one(self, name: str) -> Row:
        """The only row of an answer."""
        return self.rows[name][0]


def gather(settings: Settings, dsn: str, *, kinds: Iterable[str]) -> Facts:
    """Asks everything. Raises nothing that a database can cause."""
    libpq = pq.version()
    facts = Facts(settings, frozenset(kinds), where=describe(dsn), libpq=f"{libpq // 10_000}.{libpq % 10_000}")
    try:
        conn = _connect(dsn, settings)
    except (DatabaseUnavailable, ConfigError) as error:
        facts.unreachable = str(error)
        return facts
    with conn:
        facts.pid_of_protocol = conn.info.backend_pid
        for name in OWN:
            _ask(conn, facts, name, Statements(settings.database.schema, FOLDER)[name])
        main = Statements(settings.database.schema)
        _ask(conn, facts, "status", main["status"], {"cap": COUNT_CAP})
        _versions(conn, facts)
        with suppress(psycopg.Error):
            _clock(conn, facts)
    return facts


def _connect(dsn: str, settings: Settings) -> Connection:
    """As workers connect; where nothing may be written they cannot, and the doctor connects to say why."""
    try:
        return connect_sync(dsn, settings.database, name="wqcore doctor")
    except DatabaseUnavailable as error:
        try:
            return connect_sync(make_conninfo(dsn, target_session_attrs="any"), settings.database, name="wqcore doctor")
        except DatabaseUnavailable:
            raise error from None


def _ask(conn: Connection, facts: Facts, name: str, statement: bytes, params: Row | None = None) -> None:
    try:
        with conn.cursor(row_factory=dict_row) as cursor:
            facts.rows[name] = cursor.execute(statement, params).fetchall()
    except psycopg.Error as error:
        facts.refused[name] = error.diag.message_primary or faults.one_line(error)


def _versions(conn: Connection, facts: Facts) -> None:
    line = migrate.queue_line(facts.settings.database.schema)
    facts.code_version = len(line.steps())
    try:
        facts.schema_version = migrate.version(conn, line)
    except (psycopg.Error, SchemaError) as error:
        facts.refused["schema"] = faults.one_line(error)


def _clock(conn: Connection, facts: Facts) -> None:
    """The database's clock is read in the middle of the shortest round trip."""
    best = sys.float_info.max
    for _ in range(ROUND_TRIPS):
        sent = time.time()
        [theirs] = conn.execute("select extract(epoch from clock_timestamp())::float8").fetchone() or (sent,)
        took = time.time() - sent
        if took < best:
            best, facts.ahead_s = took, sent + took / 2 - theirs
    facts.round_trip_s = best
