"""Gives `platform`, a database with the platform's tables, an organization with an environment, and its store open."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest_asyncio
from cryptography.fernet import Fernet
from psycopg import sql

import handlers  # noqa: F401 (declares the kinds, the settings and the tables)
import wqcore
from handlers import ids, secrets, store
from tests.fix_pg import Server
from wqcore import testing
from wqcore.client.own import use_database
from wqcore.resource import close_resources, use_app_settings
from wqcore.settings import Database, Queue, Settings

QUEUES = {
    "default": 20, "executions": 10, "run-executions": 8, "event-dispatcher": 8, "task-operations": 5,
    "queue-operations": 3, "internal-queue": 3,
}  # fmt: skip


@dataclass
class Platform:
    """The database of one test.

    Attributes:
        store, client: open, as in a worker.
        organization, project, environment (str): ids of what exists already.
        api_key (str): the environment's key.
    """

    dsn: str
    conn: psycopg.Connection[Any]
    client: wqcore.Client
    store: store.Store
    organization: str
    project: str
    environment: str
    api_key: str

    def sql(self, text: str, *params: Any) -> list[tuple[Any, ...]]:
        """Runs a statement in which `{s}` stands for the platform's schema and `{wq}` for wqcore's; its rows."""
        query = sql.SQL(text).format(s=sql.Identifier("platform"), wq=sql.Identifier("wqcore"))  # type: ignore[arg-type]
        cursor = self.conn.execute(query, params or None)
        return cursor.fetchall() if cursor.description else []

    def one(self, text: str, *params: Any) -> Any:
        """The first column of the first row."""
        return self.sql(text, *params)[0][0]

    def add_endpoint(self, url: str, slug: str = "shop") -> str:
        """An endpoint of the environment; its id."""
        endpoint = ids.new("ep")
        self.sql(
            "insert into {s}.endpoint (id, environment_id, slug, url) values (%s, %s, %s, %s)",
            endpoint, self.environment, slug, url,
        )  # fmt: skip
        return endpoint

    def jobs(self, kind: str) -> list[dict[str, Any]]:
        """The args of all jobs of the kind, finished or not, oldest first."""
        return [args for (args,) in self.sql("select args from {wq}.jobs where kind = %s order by id", kind)]

    async def drain(self) -> testing.Drained:
        """Works off what is ready in all queues, with real shards in this process.

        The resources (store, client, HTTP) are closed at its end, so `reopen` what is used afterwards.
        """
        drained = await testing.drain(self.dsn, queues=list(QUEUES))
        await self.reopen()
        return drained

    async def reopen(self) -> None:
        """Opens store and client again, after something that closed the resources of this process."""
        use_database(Settings(database=Database(dsn=self.dsn)), self.dsn)
        self.client = await wqcore.current_client()
        self.store = await store.open_store()


@pytest_asyncio.fixture
async def platform(empty_dsn: str, pg: Server) -> AsyncIterator[Platform]:
    """A Platform on a fresh database; `[app]` has what the handlers need, see APP."""
    use_app_settings(app_tables())
    await testing.prepare(empty_dsn, queues={name: Queue(workers=n, slots=4) for name, n in QUEUES.items()})
    use_database(Settings(database=Database(dsn=empty_dsn)), empty_dsn)
    organization, project, environment = ids.new("org"), ids.new("proj"), ids.new("env")
    api_key = secrets.new_api_key("dev")
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        found = Platform(
            empty_dsn, conn, await wqcore.current_client(), await store.open_store(),
            organization, project, environment, api_key,
        )  # fmt: skip
        found.sql(
            "insert into {s}.organization (id, title, slug, email) values (%s, 'Acme', 'acme', 'ada@example.com')",
            organization,
        )
        found.sql(
            "insert into {s}.project (id, organization_id, name, slug) values (%s, %s, 'Shop', 'shop')",
            project, organization,
        )  # fmt: skip
        found.sql(
            "insert into {s}.environment (id, organization_id, project_id, slug, type, api_key_hash, api_key_sealed) "
            "values (%s, %s, %s, 'dev', 'DEVELOPMENT', %s, %s)",
            environment, organization, project, secrets.api_key_hash(api_key), secrets.seal(api_key),
        )  # fmt: skip
        yield found
        await close_resources()
    use_database(None)
    use_app_settings({})


def app_tables(**more: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """`[app]` as the tests have it, with a key of its own; `more` adds or replaces tables."""
    return {
        "secrets": {"keys": Fernet.generate_key().decode()},
        "http": {"allow_private_addresses": True},  # the tests' servers are on loopback
        "smtp": {"host": "127.0.0.1", "port": 1, "tls": "none", "sender": "wqcore <noreply@example.com>"},
    } | more
