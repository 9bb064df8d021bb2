"""What both clients share: settings, checked rows, requests that insert, and what an error means. Nothing here waits."""

from __future__ import annotations

from typing import Any

import msgspec
from psycopg_pool import PoolTimeout

from wqcore import clock
from wqcore.catalog import Catalog
from wqcore.catalog import catalog as default_catalog
from wqcore.db import faults, wake
from wqcore.db.bounded import Road
from wqcore.db.connect import conninfo, describe
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
from wqcore.settings import Database, Insert, Settings

POOL_CONNECTIONS_MAX = 8
POOL_IDLE_S = 30.0
"""Each time that so long passes with a connection too many, one is closed. Whenever connections break, callers that find none
open more, up to the maximum: with psycopg's ten minutes a pool that one thread uses had eight after an hour of bad network."""
IDLE_CHECK_S = 1.0
"""A pooled connection that was idle for longer is tried before use: its server may have restarted."""
ANSWER_S = 2.0
"""One that does not answer within this is given up with all that were idle beside it. Less than connect_timeout_s by default,
so that the call that tried it can still be carried out on a new one."""

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
        self._road = Road(database.statement_timeout_s)

    @property
    def dsn(self) -> str:
        """Where the database is, with the password if it has one."""
        return self._dsn

    @property
    def schema(self) -> str:
        """wqcore's schema there."""
        return self._database.schema

    def _pool_arguments(self) -> dict[str, Any]:
        """For a pool of this client's connections, of either sort."""
        return {
            "conninfo": conninfo(self._dsn, self._database, name="wqcore client", by_index=True),
            "kwargs": {"autocommit": True, "prepare_threshold": 0, "road": self._road},
            "min_size": 1,
            "max_size": POOL_CONNECTIONS_MAX,
            "timeout": self._database.connect_timeout_s,
            "max_idle": POOL_IDLE_S,
            # after so long it stops trying by itself, and each call tries at once; else the pauses double up to two minutes,
            # in which the server may have been back for long
            "reconnect_timeout": self._database.connect_timeout_s,
            "open": False,
        }

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
        """Inserts one job."""
        queue = row.queue if isinstance(row, NewJob) else row.job.queue
        channel = wake.channel(self._database.schema, queue) if always_notify else self._channel_due(queue)
        if isinstance(row, KeyedJob):
            [(_, job_id, what)] = yield Query("insert_keyed", columns_of([row], [channel]))
            return Inserted(job_id, what)
        pairs = {(row.slot, row.priority)} if row.run_at is None else set()
        payload = wake.payload(pairs, due=row.run_at is not None, past=wake.is_past(row.run_at))
        rows = yield Query("insert_one", row._asdict() | {"channel": channel, "payload": payload})
        return Inserted(rows[0][0])

    def _problem(self, error: Exception) -> Exception:
        """The error to raise for a failure of the database."""
        schema = self._database.schema
        told = faults.schema_problem(error, schema) or faults.not_permitted(error, schema) or faults.refusal(error)
        if told is not None:
            return told
        if isinstance(error, PoolTimeout) or faults.is_transient(error):
            refused = self._road.refused if isinstance(error, PoolTimeout) else None
            found = faults.unavailable(refused or error, describe(self._dsn))
            if faults.lost_connection(error) and not isinstance(error, PoolTimeout):
                return DatabaseUnavailable(f"{found}; the connection was lost, so it may have happened or not")
            return found
        return error


def dequeue(job_key: str) -> Request[bool]:
    """Takes a job key back; True when an unfinished job had it."""
    return bool((yield Query("dequeue", {"job_key": job_key})))
