"""Makes a database ready for a test: schema, queues and kinds; repeatable, and what exists already is kept.

Protocol: read which queues the database knows (their slots are fixed at the first start), then do what a master does
before it forks, with the queues of the test. A crash leaves whole steps; the next call does the rest.

This process remembers with which limits it made a queue, so that `drain` and `working` need only its name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

import msgspec

from wqcore import launch
from wqcore.catalog import Catalog
from wqcore.catalog import catalog as default_catalog
from wqcore.db import migrate
from wqcore.db.connect import connect_sync
from wqcore.db.statements import Statements
from wqcore.errors import UnknownQueue
from wqcore.recurring import declared
from wqcore.settings import Database, Queue, Settings

Queues = Iterable[str] | Mapping[str, Queue]

POLL_INTERVAL_MAX_S = 0.1
"""A test does not want to wait for a poll; a real worker polls once a second, to spare the database."""

_told: dict[tuple[str, str], dict[str, Queue]] = {}


async def prepare(
    dsn: str, *, queues: Queues = ("default",), schema: str = "wqcore", catalog: Catalog = default_catalog
) -> None:
    """Migrates the database, and makes queues, kinds and recurring jobs known to it. May be called again.

    What the program has declared by `wqcore.migrations` is applied too.

    Args:
        dsn: where the database is; its user must be allowed to create the schema.
        queues: names, or name → `wqcore.settings.Queue` with limits, slots and workers. A queue that the database
            has already keeps its slots.
        schema: wqcore's schema, default `wqcore`.
        catalog: the kinds; default those that the program has declared so far, with its recurring jobs.

    Raises DatabaseUnavailable, SchemaError, or ConfigError (a `Queue` asks for other slots than the database has).
    """
    await asyncio.to_thread(prepare_now, dsn, queues, schema, catalog)


def prepare_now(dsn: str, queues: Queues, schema: str, catalog: Catalog) -> None:
    """`prepare` for code without an event loop."""
    database = Database(dsn=dsn, schema=schema, migrate="auto")
    slots = _known_slots(dsn, database)
    told = _told.setdefault((dsn, schema), {})
    if isinstance(queues, Mapping):
        chosen = dict(queues)
    else:
        chosen = {name: told.get(name, Queue()) for name in _names(queues)}
        chosen = {
            name: msgspec.structs.replace(queue, slots=slots.get(name, queue.slots)) for name, queue in chosen.items()
        }
    settings = Settings(database=database, queues=chosen)
    launch.prepare(settings, dsn, lambda text: None)
    conn = connect_sync(dsn, database, name="wqcore testing")
    try:
        if catalog is default_catalog:
            for line in migrate.declared_lines():
                migrate.migrate(conn, line)
        launch.sync_kinds(conn, settings, catalog)
        if catalog is default_catalog:
            launch.sync_schedules(conn, settings, declared(settings), lambda text: None)
    finally:
        conn.close()
    told.update(chosen)


def settings_for(dsn: str, queues: Queues | None, schema: str) -> Settings:
    """The settings with which shards of a test run. Raises UnknownQueue or SchemaError."""
    database = Database(dsn=dsn, schema=schema)
    slots = _known_slots(dsn, database)
    told = _told.get((dsn, schema), {})
    if queues is None:
        queues = list(slots)
    if isinstance(queues, Mapping):
        chosen = {name: msgspec.structs.replace(queue, slots=slots.get(name, 0)) for name, queue in queues.items()}
    else:
        chosen = {
            name: msgspec.structs.replace(told.get(name, Queue()), slots=slots.get(name, 0)) for name in _names(queues)
        }
    unknown = [name for name in chosen if name not in slots]
    if unknown:
        raise UnknownQueue(
            f"the database has no queue {', '.join(map(repr, unknown))}, it has: {', '.join(sorted(slots)) or 'none'}; "
            "call wqcore.testing.prepare(dsn, queues=[…]) first"
        )
    return Settings(database=database, queues={name: _impatient(queue) for name, queue in chosen.items()})


def _impatient(queue: Queue) -> Queue:
    return msgspec.structs.replace(
        queue, poll_interval_s=min(queue.poll_interval_s, POLL_INTERVAL_MAX_S), fetch_cooldown_s=0.0
    )


def _names(queues: Iterable[str]) -> list[str]:
    return [queues] if isinstance(queues, str) else list(queues)


def _known_slots(dsn: str, database: Database) -> dict[str, int]:
    """Queue → slots, as the database has them; empty before the first migration."""
    conn = connect_sync(dsn, database, name="wqcore testing")
    try:
        if not migrate.version(conn, migrate.queue_line(database.schema)):
            return {}
        return dict(conn.execute(Statements(database.schema)["queues"]).fetchall())
    finally:
        conn.close()
