"""The client of this process: the same one for everything in it, open to the database whose jobs the process runs.

A worker says at its start where its database is; the client is opened at its first use and closed with the worker's
other resources. A killed worker leaves nothing but a connection, which the server closes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from wqcore.client.asyncio_client import Client
from wqcore.errors import ConfigError
from wqcore.resource import resource
from wqcore.settings import Settings

_database: tuple[Settings, str] | None = None


def use_database(settings: Settings | None, dsn: str = "") -> None:
    """Sets where `current_client` leads; None: nowhere. Called once a process, by whoever runs it."""
    global _database
    _database = None if settings is None else (settings, dsn)


@resource
async def current_client() -> AsyncIterator[Client]:
    """The client of this worker (or of a program in `wqcore.attached`), which handlers insert their follow-up jobs with.

    Raises ConfigError elsewhere, DatabaseUnavailable or SchemaError.
    """
    if _database is None:
        raise ConfigError(["this process runs no jobs: use `async with wqcore.attached(settings)`, or make a Client"])
    settings, dsn = _database
    async with Client(settings, dsn=dsn) as client:
        yield client
