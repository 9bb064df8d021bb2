"""What both clients share: settings, checked rows, requests that insert, and what an error means. Nothing here waits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Self

import msgspec
import psycopg
from msgspec import UnsetType
from psycopg_pool import PoolTimeout

from wqcore import clock
from wqcore.catalog import Catalog
from wqcore.catalog import catalog as default_catalog
from wqcore.control import given
from wqcore.control.routes import Routes, Target
from wqcore.db import faults, wake
from wqcore.db.bounded import Road
from wqcore.db.connect import BY_INDEX, conninfo, describe, patience_s, pooled, session_problem
from wqcore.db.request import Query, Request, Rows
from wqcore.errors import ConfigError, DatabaseUnavailable, InsertError, InvalidRequest, UnknownQueue, WrongDatabase
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
from wqcore.settings import HOME, Database, Insert, Settings

POOL_CONNECTIONS_MAX = 8
OWN_POOL_WAIT_S = 30.0
"""Work keeps a connection for longer than our statements do, and whoever comes meanwhile is not to fail for that."""
CONNECTIONS_MAX = 10_000
POOL_IDLE_S = 30.0
"""Each time that so long passes with a connection too many, one is closed. Whenever connections break, callers that find none
open more, up to the maximum: with psycopg's ten minutes a pool that one thread uses had eight after an hour of bad network."""
IDLE_CHECK_S = 1.0
"""A pooled connection that was idle for longer is tried before use: its server may have restarted."""
ANSWER_S = 2.0
"""One that does not answer within this is given up with all that were idle beside it. Less than connect_timeout_s by default,
so that the call that tried it can still be carried out on a new one."""

Item = msgspec.Struct | tuple[msgspec.Struct, InsertOptions]


class Link(Target):
    """One database of a client, and what is open to it."""

    def __init__(self, name: str, dsn: str, database: Database) -> None:
        super().__init__(name, dsn, database)
        self.wanted = False
        """Whether the client is open; connections are made at the first use then."""
        self.opening: Any = None
        """Held while the first connection is made."""
        self.pool: Any = None
        self.road = Road(database.statement_timeout_s)
        self.inserter: Inserter | None = None
        self.identity: str | None = None
        self._notified: dict[str, float] = {}

    def channel_due(self, queue: str, interval_s: float) -> str | None:
        """The queue's channel, or None when this client has notified it within `insert.notify_interval_s`.

        A shard that was woken looks again after 10 ms, so a notification left out costs no more than that.
        """
        now = clock.monotonic()
        if now - self._notified.get(queue, -1.0) < interval_s:
            return None
        self._notified[queue] = now
        return wake.channel(self.database.schema, queue)


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
        """Takes either loaded settings or a DSN and a schema. Raises ConfigError when there is no DSN.

        `dsn` counts more than that of the settings' table [database].
        """
        database = settings.database if settings else Database(schema=schema)
        links = [Link(HOME, _dsn("database", dsn if dsn is not None else database.dsn), database)]
        queues: dict[str, str] = {}
        if settings is not None and settings.databases:
            queues = {name: queue.database for name, queue in settings.queues.items()}
            links += [Link(name, _dsn(f"databases.{name}", of.dsn), of) for name, of in settings.databases.items()]
        self._routes = Routes(links, queues)
        self._limits = settings.insert if settings else Insert()
        self._catalog = catalog
        self._tracing = tracing(settings) if settings is not None else None

    @property
    def dsn(self) -> str:
        """Where the database (of several: that of the table [database]) is, with the password if it has one."""
        return self._routes.home.dsn

    @property
    def schema(self) -> str:
        """wqcore's schema there."""
        return self._routes.home.database.schema

    def at(self, database: str) -> Self:
        """This client for one of its databases, by the name of its table (`default`: that of [database]).

        It shares the connections of this one, and ends with it. Ids are those of jobs in that database. Raises
        InvalidRequest when there is none of that name.
        """
        bound = copy.copy(self)
        bound._routes = self._routes.bound_to(database)
        return bound

    def _know(self, link: Link, queues: list[tuple[Any, ...]]) -> None:
        link.inserter = Inserter(dict(queues), self._limits.args_bytes_max)
        link.queues = {name for name, _ in queues}

    def _met(self, link: Link, session: Rows, identity: Rows) -> None:
        """Takes in what a first connection has shown. Raises ConfigError when it is not what it should be."""
        problem = session_problem(link.dsn, link.database, session[0][0])
        if problem is not None:
            raise problem
        link.identity = identity[0][0] if identity else None
        for other in self._routes.targets:
            if link.identity is not None and other is not link and other.identity == link.identity:
                schema = link.database.schema
                raise ConfigError(
                    [f"the databases {other} and {link} are one: give each a database or a schema of its own. (One that was "
                     f"made as a copy of the other gets an identity of its own by setting migration.applied_at of version 1 in "
                     f"schema {schema!r} to now())"]
                )  # fmt: skip

    def _row(self, item: Item) -> NewJob | KeyedJob:
        args, options = item if isinstance(item, tuple) else (item, NO_OPTIONS)
        kind = self._catalog.kind_of(args)
        if self._catalog.insert_middleware:
            options = seen_by(self._catalog.insert_middleware, kind, args, options)
        link = self._routes.home
        if self._routes.several:
            link = self._routes.of_queue(options.queue if options.queue is not None else kind.queue)
        if link.inserter is None:
            raise UnknownQueue("the client is not open: use `async with Client(…)`, or call `initialize()` first")
        return link.inserter.row(kind, args, options)

    def _link(self, row: NewJob | KeyedJob) -> Link:
        """The database that a row goes to."""
        if not self._routes.several:
            return self._routes.home
        return self._routes.of_queue(row.queue if isinstance(row, NewJob) else row.job.queue)

    def checked(
        self, args: msgspec.Struct, options: InsertOptions = NO_OPTIONS
    ) -> tuple[msgspec.Struct, InsertOptions]:
        """The item itself when it could be inserted; raises as `insert` does. Writes nothing."""
        self._row((args, options))
        return args, options

    def _insertion(self, link: Link, row: NewJob | KeyedJob, *, always_notify: bool = False) -> Request[Inserted]:
        """Inserts one job, in a span where the program wants traces."""
        if self._tracing is None:
            return self._written(link, row, always_notify)
        return self._tracing.sending(row, lambda stamped: self._written(link, stamped, always_notify))

    def _written(self, link: Link, row: NewJob | KeyedJob, always_notify: bool) -> Request[Inserted]:
        queue = row.queue if isinstance(row, NewJob) else row.job.queue
        if always_notify:
            channel: str | None = wake.channel(link.database.schema, queue)
        else:
            channel = link.channel_due(queue, self._limits.notify_interval_s)
        if isinstance(row, KeyedJob):
            [(_, job_id, what)] = yield Query("insert_keyed", columns_of([row], [channel]))
            return Inserted(job_id, what, link.name)
        pairs = {(row.slot, row.priority)} if row.run_at is None else set()
        payload = wake.payload(pairs, due=row.run_at is not None, past=wake.is_past(row.run_at))
        rows = yield Query("insert_one", row._asdict() | {"channel": channel, "payload": payload})
        return Inserted(rows[0][0], "inserted", link.name)

    def _together(self, first: Link, row: NewJob | KeyedJob) -> None:
        """Raises InsertError when a job of a bulk insert does not go where its first one goes."""
        link = self._link(row)
        if link is not first:
            queue = row.queue if isinstance(row, NewJob) else row.job.queue
            raise InsertError(
                f"insert_many is one transaction, and queue {queue!r} is in database {link.name}, but the first job went to "
                f"database {first.name}: call it once for each database; nothing was inserted"
            )

    def _wrong(self, link: Link, queue: str, identity: str | None, info: psycopg.ConnectionInfo) -> WrongDatabase:
        """The error for a connection that does not lead to the database of a queue."""
        seen = next((other.name for other in self._routes.targets if other.identity == identity and identity), None)
        where = f"host={info.host} port={info.port} dbname={info.dbname}"
        return WrongDatabase(
            f"queue {queue!r} is in database {link}, but the connection leads to {seen or 'another one'} ({where}): insert on "
            "a connection to the former, or by `insert`; nothing was inserted"
        )

    def _problem(self, error: Exception, link: Link) -> Exception:
        """The error to raise for a failure of the database."""
        schema = link.database.schema
        told = (
            faults.schema_problem(error, schema)
            or faults.not_permitted(error, schema)
            or faults.refusal(error)
            or faults.pooler_problem(error)
        )
        if told is not None:
            return told
        if isinstance(error, PoolTimeout) or faults.is_transient(error):
            refused = link.road.refused if isinstance(error, PoolTimeout) else None
            found = faults.unavailable(refused or error, describe(link.dsn))
            if faults.lost_connection(error) and not isinstance(error, PoolTimeout):
                return DatabaseUnavailable(f"{found}; the connection was lost, so it may have happened or not")
            return found
        return error


def pool_arguments(
    link: Link, made: Callable[..., type[Any]], *, name: str = "wqcore client",
    connections_max: int = POOL_CONNECTIONS_MAX, settings: Mapping[str, str] = BY_INDEX,
) -> dict[str, Any]:  # fmt: skip
    """For a pool of connections to one database; `made` gives their class, of either sort."""
    # as long as it may take to find the host that accepts one
    timeout_s = patience_s(link.dsn, link.database) if "," in describe(link.dsn) else link.database.connect_timeout_s
    return {
        "conninfo": conninfo(link.dsn, link.database, name=name, settings=settings),
        "connection_class": made(link.database, settings=settings),
        "kwargs": pooled(link.database, link.road),
        "min_size": 1,
        "max_size": connections_max,
        "timeout": timeout_s,
        "max_idle": POOL_IDLE_S,
        # after so long it stops trying by itself, and each call tries at once; else the pauses double up to two minutes,
        # in which the server may have been back for long
        "reconnect_timeout": timeout_s,
        "open": False,
    }


def own_pool_arguments(
    link: Link, made: Callable[..., type[Any]], *, connections_max: int, wait_s: float, name: str,
    statement_timeout_s: float | None, settings: Mapping[str, str], connection: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """For a pool of the program's own. Raises InvalidRequest."""
    given.whole("connections_max", connections_max, 1, CONNECTIONS_MAX)
    timeout_s = given.seconds("statement_timeout_s", statement_timeout_s)
    if timeout_s is None:
        timeout_s = link.database.statement_timeout_s
    elif timeout_s <= 0:
        raise InvalidRequest(f"statement_timeout_s {timeout_s:g} is not above 0")
    settings = {**settings, "statement_timeout": str(int(timeout_s * 1000))}
    found = pool_arguments(link, made, name=name, connections_max=connections_max, settings=settings)
    found["timeout"] = given.seconds("wait_s", wait_s)
    found["kwargs"] |= {"autocommit": False, **connection, "road": Road(timeout_s)}
    if not link.database.listens:
        found["kwargs"]["prepare_threshold"] = None  # what is prepared would stay in a session that others get next
    return found


def _dsn(key: str, dsn: str | UnsetType) -> str:
    if isinstance(dsn, str):
        return dsn
    raise ConfigError([f"no DSN: pass dsn=…, or settings with {key}.dsn"])


def dequeue(job_key: str) -> Request[bool]:
    """Takes a job key back; True when an unfinished job had it. Raises InvalidRequest."""
    return bool((yield Query("dequeue", {"job_key": given.text("job_key", job_key)})))
