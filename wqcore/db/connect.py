"""Opens connections that notice a dead peer, never wait for ever, and refuse a read-only server.

Every connection is in autocommit mode with time-outs on the server and on the socket. Passwords are never logged:
`describe` is the only way to print where a DSN leads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import orjson
import psycopg
from psycopg import pq
from psycopg.adapt import Dumper
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.types.numeric import Int8BinaryLoader
from psycopg.types.string import ByteaBinaryLoader

from wqcore.db import pooler
from wqcore.db.bounded import BoundedAsyncConnection, BoundedConnection, Road
from wqcore.db.faults import pooler_problem, unavailable
from wqcore.errors import ConfigError
from wqcore.settings import Database

AsyncConnection = psycopg.AsyncConnection[Any]
Connection = psycopg.Connection[Any]

TURN = {
    # The hot statements have one right plan each, by index. Statistics of a table that empties and fills within
    # seconds only mislead: a plan made at 0 rows walked 200,000 of them at each turn. For the same reason a statement
    # never joins a job by `j.id = x.id`: when an ANALYZE has met a nearly empty table, the planner takes a walk over the
    # whole primary key for cheap, and beside 100,000 dead rows a turn took seconds. `= any(array[x.id])` is looked up
    # id by id, or not at all.
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
}
"""Settings of a shard's session."""
TURN_SETTINGS = "; ".join(f"set {key} = {value}" for key, value in TURN.items())


NO_SETTINGS: Mapping[str, str] = MappingProxyType({})
BY_INDEX: Mapping[str, str] = MappingProxyType({"enable_seqscan": "off", "enable_bitmapscan": "off"})
"""Settings of sessions that send nothing but our statements, each of which rides an index. Without statistics yet, the planner
read a history of a million rows at each look at its newest (100 ms instead of 1); and beside an old snapshot it gathered all
dead claims of a shard in a bitmap to find the newest, which is the first of its index (2,300 rows)."""

CONNECT_TIMEOUT_MIN_S = 2.0
"""libpq and psycopg take less for this."""


class BigIntArray:
    """A list of int as a PostgreSQL bigint[] parameter; encoding it costs a tenth of the list dumper's time."""

    __slots__ = ("items",)
    oid = 1016

    def __init__(self, items: list[int]) -> None:
        self.items = items


class _BigIntArrayDumper(Dumper):
    format = pq.Format.TEXT
    oid = BigIntArray.oid

    def dump(self, obj: BigIntArray) -> bytes:
        return b"{" + orjson.dumps(obj.items)[1:-1] + b"}"


psycopg.adapters.register_dumper(BigIntArray, _BigIntArrayDumper)


def conninfo(dsn: str, database: Database, *, name: str, settings: Mapping[str, str] = NO_SETTINGS) -> str:
    """The DSN with our time-outs, and other settings of the session, where it has none of its own.

    Raises ConfigError for a malformed DSN.
    """
    try:
        given = conninfo_to_dict(dsn)
    except psycopg.Error as error:
        raise ConfigError([f"database.dsn is not a connection string: {_without_values(error)}"]) from None
    ours: dict[str, Any] = {
        "connect_timeout": database.connect_timeout_s,
        # behind a pooler one name: it would set the other name whenever it lends a session to somebody else
        "application_name": name if database.listens else "wqcore",
        "tcp_user_timeout": int(database.tcp_user_timeout_s * 1000),
        "keepalives_idle": keepalives_idle_s(database),
        "keepalives_interval": keepalives_interval_s(database),
        "keepalives_count": 3,
        "target_session_attrs": "read-write",
    }
    options = str(given.pop("options", None) or "")
    if (
        database.listens
    ):  # a pooler in transaction mode refuses options: `db/pooler.py` sends them with each transaction
        found = session_settings(database, settings=settings)
        options = " ".join([*(f"-c {key}={value}" for key, value in found.items()), options]).strip()
    if options:
        ours["options"] = options
    return make_conninfo("", **(ours | given))


def keepalives_idle_s(database: Database) -> int:
    """Whole seconds without data after which either side asks whether the other is there."""
    return max(1, round(database.tcp_user_timeout_s * 2 / 3))


def keepalives_interval_s(database: Database) -> int:
    """Whole seconds between two such questions."""
    return max(1, round(database.tcp_user_timeout_s / 3))


def session_settings(database: Database, *, settings: Mapping[str, str] = NO_SETTINGS) -> dict[str, str]:
    """What the server is to do for our sessions; `settings` are more of that, and win."""
    found = {
        "statement_timeout": str(int(database.statement_timeout_s * 1000)),
        "idle_in_transaction_session_timeout": "60000",
        # Our statements take milliseconds; a server with LLVM compiled one for 0.9 s, because a plan that must not scan
        # looks expensive.
        "jit": "off",
        # The server's side of a half-open connection, which by default is kept for two hours: each time that the network
        # breaks, every worker would leave one behind, until max_connections are used up.
        "tcp_keepalives_idle": str(keepalives_idle_s(database)),
        "tcp_keepalives_interval": str(keepalives_interval_s(database)),
        "tcp_keepalives_count": "3",
        "tcp_user_timeout": str(int(database.tcp_user_timeout_s * 1000)),
    }
    return {**found, **settings}


def patience_s(dsn: str, database: Database) -> float:
    """How long connecting may take in all: `connect_timeout_s` for each host of the DSN, and once more for the names."""
    try:
        given = conninfo_to_dict(dsn)
    except psycopg.Error:
        return database.connect_timeout_s * 2
    hosts = str(given.get("host") or given.get("hostaddr") or "").count(",") + 1
    each = float(given.get("connect_timeout") or database.connect_timeout_s)
    return max(each, CONNECT_TIMEOUT_MIN_S) * (hosts + 1)


def async_class(database: Database, *, settings: Mapping[str, str] = NO_SETTINGS) -> type[BoundedAsyncConnection]:
    """What connections for asyncio are: bounded ones, and where it is needed those that get on with a pooler."""
    if database.listens:
        return BoundedAsyncConnection
    return pooler.async_class(session_settings(database, settings=settings))


def sync_class(database: Database, *, settings: Mapping[str, str] = NO_SETTINGS) -> type[BoundedConnection]:
    """The same for code without an event loop."""
    if database.listens:
        return BoundedConnection
    return pooler.sync_class(session_settings(database, settings=settings))


def session_problem(dsn: str, database: Database, statement_timeout_s: float) -> ConfigError | None:
    """A ConfigError when a session has not got the settings that were asked for, else None."""
    if "statement_timeout" in str(conninfo_to_dict(dsn).get("options")):
        return None  # the DSN has its own
    if round(statement_timeout_s, 3) == round(database.statement_timeout_s, 3):
        return None
    return ConfigError(
        ["the session has not got the settings that were asked for, so database.dsn leads to a pooler, which drops them "
         '(PgBouncer: ignore_startup_parameters = options): write database.pooler = "transaction"']
    )  # fmt: skip


def pooled(database: Database, road: Road) -> dict[str, Any]:
    """Arguments of the connections of a client's pool."""
    return {"autocommit": True, "prepare_threshold": 0 if database.listens else None, "road": road}


def describe(dsn: str) -> str:
    """Where a DSN leads, for people: host, port, database and user, never the password."""
    try:
        given = conninfo_to_dict(dsn)
    except psycopg.Error:
        return "(malformed DSN)"
    shown = {key: given[key] for key in ("host", "port", "dbname", "user") if given.get(key)}
    return " ".join(f"{key}={value}" for key, value in shown.items()) or "(libpq defaults)"


async def connect(dsn: str, database: Database, *, name: str, settings: Mapping[str, str] = NO_SETTINGS) -> AsyncConnection:
    """An open autocommit connection. Raises DatabaseUnavailable, or ConfigError when a pooler is in the way."""
    return await _connect(dsn, database, name, async_class(database, settings=settings), settings=settings)


async def _connect(
    dsn: str, database: Database, name: str, made: type[BoundedAsyncConnection], *, settings: Mapping[str, str] = NO_SETTINGS
) -> AsyncConnection:
    info = conninfo(dsn, database, name=name, settings=settings)
    try:
        async with asyncio.timeout(patience_s(dsn, database)):
            return await made.connect(info, autocommit=True, road=Road(database.statement_timeout_s))
    except (psycopg.Error, TimeoutError, OSError) as error:
        raise pooler_problem(error) or unavailable(error, describe(dsn)) from error


def connect_sync(dsn: str, database: Database, *, name: str, settings: Mapping[str, str] = NO_SETTINGS) -> Connection:
    """An open autocommit connection for code without an event loop. Raises as `connect`."""
    info = conninfo(dsn, database, name=name, settings=settings)
    try:
        return sync_class(database, settings=settings).connect(info, autocommit=True, road=Road(database.statement_timeout_s))
    except (psycopg.Error, OSError) as error:
        raise pooler_problem(error) or unavailable(error, describe(dsn)) from error


async def connect_for_turns(dsn: str, database: Database, *, name: str) -> AsyncConnection:
    """A connection for a shard: json arrives as bytes and timestamptz as microseconds since 2000-01-01, undecoded."""
    if not database.listens:
        conn = await _connect(dsn, database, name, pooler.async_class(session_settings(database, settings=TURN)))
    else:
        conn = await connect(dsn, database, name=name)
    try:
        conn.adapters.register_loader("json", ByteaBinaryLoader)
        conn.adapters.register_loader("timestamptz", Int8BinaryLoader)
        if database.listens:
            conn.prepare_threshold = 0
            await conn.execute(TURN_SETTINGS.encode(), prepare=False)
    except BaseException:
        await conn.close()
        raise
    return conn


def _without_values(error: Exception) -> str:
    """libpq quotes the offending part of a DSN, which may be a password: keep only what stands before the quote."""
    return str(error).split('"')[0].strip() or type(error).__name__
