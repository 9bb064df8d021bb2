"""Gives `pg`, a PostgreSQL of the tests' own, and `database`, a fresh database in it with wqcore's schema and queues.

`WQ_TEST_PG` chooses the major version: 18 (default) or 16 from the wheel, 15 from Debian's packages where installed.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import pytest_asyncio
from psycopg import sql
from psycopg.conninfo import make_conninfo

from wqcore import launch
from wqcore.db import embedded, wake
from wqcore.db.connect import AsyncConnection, Connection, connect, connect_for_turns
from wqcore.db.statements import Statements
from wqcore.line.turn import Protocol
from wqcore.settings import Database, Queue, Settings

VERSION = int(os.environ.get("WQ_TEST_PG", "18"))
DEBIAN = Path(f"/usr/lib/postgresql/{VERSION}/bin")
PROCESS = "00000000-0000-4000-8000-000000000001"
ODD_SCHEMAS = ['we"ird; schema', "Grüße und {so}"]
QUEUES = {"default": Queue(slots=4), "mail": Queue(slots=2), 'o"dd; quéue': Queue(slots=1)}
SERVER = {"fsync": "off", "shared_buffers": "'64MB'", "autovacuum": "off", "max_prepared_transactions": "0"}
"""Nothing here tests durability; without autovacuum no plan and no statistic changes behind a test's back."""

_numbers = itertools.count(1)


class Server:
    """A running server: `version`, and the DSN of any of its databases."""

    def __init__(self, dsn: str, version: int) -> None:
        self._dsn = dsn
        self.version = version

    def dsn(self, database: str = "postgres") -> str:
        return make_conninfo(self._dsn, dbname=database)


class Fresh:
    """A database of one test: its DSN and settings, its statements, and connections that end with the test."""

    def __init__(self, dsn: str, settings: Settings, conn: Connection) -> None:
        self.dsn = dsn
        self.settings = settings
        self.schema = settings.database.schema
        self.statements = Statements(self.schema)
        self.conn = conn

    def sql(self, text: str, *params: Any) -> list[tuple[Any, ...]]:
        """Runs a statement in which `{s}` stands for the schema; its rows, if it has any."""
        cursor = self.conn.execute(sql.SQL(text).format(s=sql.Identifier(self.schema)), params or None)  # type: ignore[arg-type]
        return cursor.fetchall() if cursor.description else []

    def one(self, text: str, *params: Any) -> Any:
        """The first column of the first row."""
        return self.sql(text, *params)[0][0]


@pytest.fixture(scope="session")
def pg() -> Iterator[Server]:
    """A server in a temporary folder for the whole run."""
    folder = Path(tempfile.mkdtemp(prefix="wqpg", dir="/tmp"))
    try:
        if VERSION in (16, 18):
            server = embedded.start(folder / "d", version=VERSION, settings=SERVER)
            try:
                yield Server(server.dsn, VERSION)
            finally:
                server.stop()
        elif (DEBIAN / "initdb").exists():
            yield from _debian(folder)
        else:
            pytest.skip(f"PostgreSQL {VERSION} IS NOT TESTED: there is no {DEBIAN}; install postgresql-{VERSION}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def schema(request: pytest.FixtureRequest) -> str:
    """The schema of `database`; a test chooses others by indirect parametrisation, e.g. over ODD_SCHEMAS."""
    return getattr(request, "param", "wqcore")


@pytest.fixture
def empty_dsn(pg: Server) -> Iterator[str]:
    """The DSN of a fresh, empty database."""
    name = f"t{next(_numbers)}"
    with psycopg.connect(pg.dsn(), autocommit=True) as admin:
        admin.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        yield pg.dsn(name)
        admin.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.fixture
def settings(empty_dsn: str, schema: str) -> Settings:
    """Settings for `empty_dsn` with three queues."""
    return Settings(database=Database(dsn=empty_dsn, schema=schema, migrate="auto"), queues=QUEUES)


@pytest.fixture
def database(settings: Settings, empty_dsn: str) -> Iterator[Fresh]:
    """A fresh database with schema and queues."""
    launch.prepare(settings, empty_dsn, lambda text: None)
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        yield Fresh(empty_dsn, settings, conn)


@pytest_asyncio.fixture
async def aconn(database: Fresh) -> AsyncIterator[AsyncConnection]:
    """An asyncio connection of the kind that the keeper and callers have."""
    conn = await connect(database.dsn, database.settings.database, name="test")
    yield conn
    await conn.close()


@pytest_asyncio.fixture
async def new_shard(database: Fresh) -> AsyncIterator[Callable[..., Any]]:
    """`await new_shard(7)` registers shard 7 of the queue `default` and gives its Protocol, connected."""
    opened: list[AsyncConnection] = []

    async def make(shard: int, *, queue: str = "default") -> Protocol:
        protocol = Protocol(
            database.statements,
            shard=shard,
            queue=queue,
            channel=wake.channel(database.schema, queue),
            reply_timeout_s=30,
        )
        protocol.keep_completed_hours = 24.0
        protocol.conn = await connect_for_turns(database.dsn, database.settings.database, name=f"shard {shard}")
        opened.append(protocol.conn)
        await protocol.register(PROCESS)
        return protocol

    yield make
    for conn in opened:
        await conn.close()


def _debian(folder: Path) -> Iterator[Server]:
    """Debian's binaries; as root they must run as another user, who must reach the folder."""
    folder.chmod(0o755)
    data = folder / "d"
    data.mkdir(mode=0o700)
    as_user: list[str] = []
    if os.geteuid() == 0:
        try:
            shutil.chown(data, "postgres")
            user = "postgres"
        except LookupError:
            shutil.chown(data, "nobody")
            user = "nobody"
        as_user = ["runuser", "-u", user, "--"]

    def run(*command: str) -> None:
        subprocess.run([*as_user, *command], check=True, cwd="/", stdout=subprocess.DEVNULL, timeout=60)

    run(str(DEBIAN / "initdb"), "-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
    options = " ".join(f"-c {name}={value}" for name, value in SERVER.items())
    run(
        str(DEBIAN / "pg_ctl"), "-D", str(data), "-w", "-l", str(data / "log"),
        "-o", f"-k {data} -c listen_addresses= -c max_connections=200 {options}", "start",
    )
    try:
        yield Server(make_conninfo(host=str(data), user="postgres"), VERSION)
    finally:
        run(str(DEBIAN / "pg_ctl"), "-D", str(data), "-w", "-m", "fast", "stop")
