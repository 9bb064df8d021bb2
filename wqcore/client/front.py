"""What both clients share: settings, checked rows, requests that insert, and what an error means. Nothing here waits."""

from __future__ import annotations

from typing import Any

import msgspec
from psycopg_pool import PoolTimeout

from wqcore import clock
from wqcore.catalog import Catalog
from wqcore.catalog import catalog as default_catalog
from wqcore.db import faults, wake
from wqcore.db.connect import describe
from wqcore.db.request import Query, Request
from wqcore.db.statements import Statements
from wqcore.errors import ConfigError, DatabaseUnavailable, UnknownQueue
from wqcore.line.insert import (
    NO_OPTIONS,
    Inserted,
    Inserter,
    InsertOptions,
    KeyedJob,
    NewJob,
    columns_of,
    seen_by,
)
from wqcore.line.traces import tracing
from wqcore.settings import Database, Insert, Settings

POOL_CONNECTIONS_MAX = 8
IDLE_CHECK_S = 1.0
"""A pooled connection that was idle for longer is tried before use: its server may have restarted."""

Item = msgspec.Struct | tuple[msgspec.Struct, InsertOptions]


class Front:
    """A client without its connections."""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        dsn: str | None = None,
        schema: str = "wqcore",
        catalog: Catalog = default_catalog,
    ) -> None:
        """Takes either loaded settings or a DSN and a schema. Raises ConfigError when there is no DSN."""
        database = settings.database if settings else Database(schema=schema)
        found = dsn if dsn is not None else (None if database.dsn is msgspec.UNSET else database.dsn)
        if not isinstance(found, str):
            raise ConfigError(["no DSN: pass dsn=…, or settings with database.dsn"])
        self._dsn: str = found
        self._database = database
        self._limits = settings.insert if settings else Insert()
        self._catalog = catalog
        self._statements = Statements(database.schema)
        self._inserter: Inserter | None = None
        self._notified: dict[str, float] = {}
        self._tracing = tracing(settings) if settings is not None else None

    @property
    def dsn(self) -> str:
        """Where the database is, with the password if it has one."""
        return self._dsn

    @property
    def schema(self) -> str:
        """wqcore's schema there."""
        return self._database.schema

    def _know(self, queues: list[tuple[Any, ...]]) -> None:
        self._inserter = Inserter(dict(queues), self._limits.args_bytes_max)

    def _row(self, item: Item) -> NewJob | KeyedJob:
        args, options = item if isinstance(item, tuple) else (item, NO_OPTIONS)
        if self._inserter is None:
            raise UnknownQueue("the client is not open: use `async with Client(…)`, or call `initialize()` first")
        kind = self._catalog.kind_of(args)
        if self._catalog.insert_middleware:
            options = seen_by(self._catalog.insert_middleware, kind, args, options)
        return self._inserter.row(kind, args, options)

    def checked(
        self, args: msgspec.Struct, options: InsertOptions = NO_OPTIONS
    ) -> tuple[msgspec.Struct, InsertOptions]:
        """The item itself when it could be inserted; raises as `insert` does. Writes nothing."""
        self._row((args, options))
        return args, options

    def _channel_due(self, queue: str) -> str | None:
        """The queue's channel, or None when this client has notified it within `insert.notify_interval_s`.

        A shard that was woken looks again after 10 ms, so a notification left out costs no more than that.
        """
        now = clock.monotonic()
        if now - self._notified.get(queue, -1.0) < self._limits.notify_interval_s:
            return None
        self._notified[queue] = now
        return wake.channel(self._database.schema, queue)

    def _insertion(self, row: NewJob | KeyedJob, *, always_notify: bool = False) -> Request[Inserted]:
        """Inserts one job, in a span where the program wants traces."""
        if self._tracing is None:
            return self._written(row, always_notify)
        return self._tracing.sending(row, lambda stamped: self._written(stamped, always_notify))

    def _written(self, row: NewJob | KeyedJob, always_notify: bool) -> Request[Inserted]:
        queue = row.queue if isinstance(row, NewJob) else row.job.queue
        channel = wake.channel(self._database.schema, queue) if always_notify else self._channel_due(queue)
        if isinstance(row, KeyedJob):
            [(_, job_id, what)] = yield Query("insert_keyed", columns_of([row], [channel]))
            return Inserted(job_id, what)
        payload = "due" if row.run_at is not None else f"{row.slot}:{row.priority}"
        rows = yield Query("insert_one", row._asdict() | {"channel": channel, "payload": payload})
        return Inserted(rows[0][0])

    def _problem(self, error: Exception) -> Exception:
        """The error to raise for a failure of the database."""
        schema = self._database.schema
        told = faults.schema_problem(error, schema) or faults.not_permitted(error, schema) or faults.refusal(error)
        if told is not None:
            return told
        if isinstance(error, PoolTimeout) or faults.is_transient(error):
            found = faults.unavailable(error, describe(self._dsn))
            if faults.lost_connection(error) and not isinstance(error, PoolTimeout):
                return DatabaseUnavailable(f"{found}; the connection was lost, so it may have happened or not")
            return found
        return error


def dequeue(job_key: str) -> Request[bool]:
    """Takes a job key back; True when an unfinished job had it."""
    return bool((yield Query("dequeue", {"job_key": job_key})))
