"""Fixtures for pytest: each test gets a fresh, migrated database that knows the program's queues and kinds.

Protocol: one server a session, either that of `--wqcore-dsn` or one of PostgreSQL's own in a temporary folder (extra
`embedded`); one database a test, made and dropped. A killed session leaves the temporary folder and its server, which
ends when its folder is removed; or, with `--wqcore-dsn`, databases named `wqcore_test_…`.

pytest finds this by itself where wqcore is installed; `-p no:wqcore` leaves it out.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from wqcore.catalog import catalog
from wqcore.client import Client, SyncClient
from wqcore.db import embedded
from wqcore.errors import ConfigError
from wqcore.testing.ready import Queues, prepare_now

try:
    import pytest_asyncio
except ImportError:
    pytest_asyncio = None  # type: ignore[assignment]

SERVER = {"fsync": "off", "full_page_writes": "off", "shared_buffers": "'64MB'"}
"""A test's database need not survive a power cut."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--wqcore-dsn`."""
    group = parser.getgroup("wqcore", "jobs on PostgreSQL")
    group.addoption(
        "--wqcore-dsn",
        metavar="DSN",
        help="A server for the fixture wqcore_dsn, whose user may create databases. Default: a PostgreSQL of its own.",
    )


@pytest.fixture(scope="session")
def wqcore_server(request: pytest.FixtureRequest) -> Iterator[str]:
    """The DSN of the server of this session, which `--wqcore-dsn` can choose."""
    given = request.config.getoption("--wqcore-dsn")
    if given:
        yield str(given)
        return
    folder = Path(tempfile.mkdtemp(prefix="wqcore", dir="/tmp"))  # short: its socket has a limit
    try:
        server = embedded.start(folder / "d", settings=SERVER)
    except ConfigError as error:
        shutil.rmtree(folder, ignore_errors=True)
        pytest.skip(
            f"NOT TESTED, there is no database: {error}; pip install 'wqcore[embedded]', or run pytest with "
            "--wqcore-dsn=postgresql://…"
        )
    try:
        yield server.dsn
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def wqcore_queues() -> Queues:
    """The queues that the database gets: `default` and those of all declared kinds. Override it to name others."""
    return sorted({"default"} | {kind.queue for kind in catalog})


@pytest.fixture
def wqcore_dsn(wqcore_server: str, wqcore_queues: Queues) -> Iterator[str]:
    """The DSN of a fresh database with wqcore's schema, the queues of `wqcore_queues`, and the declared kinds."""
    name = f"wqcore_test_{uuid.uuid4().hex[:12]}"
    dsn = make_conninfo(wqcore_server, dbname=name)
    with psycopg.connect(wqcore_server, autocommit=True) as admin:
        admin.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        try:
            prepare_now(dsn, wqcore_queues, "wqcore", catalog)
            yield dsn
        finally:
            admin.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.fixture
def wqcore_conn(wqcore_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection in autocommit mode to the test's database, for `assert_inserted` and `travel`."""
    with psycopg.connect(wqcore_dsn, autocommit=True) as conn:
        yield conn


@pytest.fixture
def wqcore_client(wqcore_dsn: str) -> Iterator[SyncClient]:
    """An open `wqcore.SyncClient` of the test's database."""
    with SyncClient(dsn=wqcore_dsn) as client:
        yield client


if pytest_asyncio is not None:

    @pytest_asyncio.fixture
    async def wqcore_async_client(wqcore_dsn: str) -> AsyncIterator[Client]:
        """An open `wqcore.Client` of the test's database. Exists where pytest-asyncio is installed."""
        async with Client(dsn=wqcore_dsn) as client:
            yield client
