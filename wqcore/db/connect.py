"""Opens connections that notice a dead peer, never wait for ever, and refuse a read-only server.

Every connection is in autocommit mode with time-outs on the server and on the socket. Passwords are never logged:
`describe` is the only way to print where a DSN leads.
"""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import psycopg
from psycopg import pq
from psycopg.adapt import Dumper
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.types.numeric import Int8BinaryLoader
from psycopg.types.string import ByteaBinaryLoader

from wqcore.db.bounded import BoundedAsyncConnection, BoundedConnection, Road
from wqcore.db.faults import unavailable
from wqcore.errors import ConfigError
from wqcore.settings import Database

AsyncConnection = psycopg.AsyncConnection[Any]
Connection = psycopg.Connection[Any]

TURN_SETTINGS = (
    # The hot statements have one right plan each, by index. Statistics of a table that empties and fills within
    # seconds only mislead: a plan made at 0 rows walked 200,000 of them at each turn. For the same reason a statement
    # never joins a job by `j.id = x.id`: when an ANALYZE has met a nearly empty table, the planner takes a walk over the
    # whole primary key for cheap, and beside 100,000 dead rows a turn took seconds. `= any(array[x.id])` is looked up
    # id by id, or not at all.
    "set enable_seqscan = off; set enable_bitmapscan = off; set enable_hashjoin = off; set enable_mergejoin = off; "
    "set plan_cache_mode = force_generic_plan; set jit = off"
)


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


def conninfo(dsn: str, database: Database, *, name: str, by_index: bool = False) -> str:
    """The DSN with our time-outs added where it has none of its own. Raises ConfigError for a malformed DSN.

    `by_index`: for sessions that send nothing but our statements, each of which rides an index; without statistics yet,
    the planner read a history of a million rows at each look at its newest (100 ms instead of 1); and beside an old snapshot
    it gathered all dead claims of a shard in a bitmap to find the newest, which is the first of its index (2,300 rows).
    """
    try:
        given = conninfo_to_dict(dsn)
    except psycopg.Error as error:
        raise ConfigError([f"database.dsn is not a connection string: {_without_values(error)}"]) from None
    keepalives_idle_s = max(1, round(database.tcp_user_timeout_s * 2 / 3))
    keepalives_interval_s = max(1, round(database.tcp_user_timeout_s / 3))
    ours: dict[str, Any] = {
        "connect_timeout": database.connect_timeout_s,
        "application_name": name,
        "tcp_user_timeout": int(database.tcp_user_timeout_s * 1000),
        "keepalives_idle": keepalives_idle_s,
        "keepalives_interval": keepalives_interval_s,
        "keepalives_count": 3,
        "target_session_attrs": "read-write",
        "options": f"-c statement_timeout={int(database.statement_timeout_s * 1000)}"
        # Our statements take milliseconds; a server with LLVM compiled one for 0.9 s, because a plan that must not scan
        # looks expensive.
        " -c idle_in_transaction_session_timeout=60000 -c jit=off"
        # The server's side of a half-open connection, which by default is kept for two hours: each time that the network
        # breaks, every worker would leave one behind, until max_connections are used up.
        f" -c tcp_keepalives_idle={keepalives_idle_s} -c tcp_keepalives_interval={keepalives_interval_s}"
        f" -c tcp_keepalives_count=3 -c tcp_user_timeout={int(database.tcp_user_timeout_s * 1000)}",
    }
    if by_index:
        ours["options"] += " -c enable_seqscan=off -c enable_bitmapscan=off"
    options = given.pop("options", None)
    if options:
        ours["options"] += f" {options}"
    return make_conninfo("", **(ours | given))


def describe(dsn: str) -> str:
    """Where a DSN leads, for people: host, port, database and user, never the password."""
    try:
        given = conninfo_to_dict(dsn)
    except psycopg.Error:
        return "(malformed DSN)"
    shown = {key: given[key] for key in ("host", "port", "dbname", "user") if given.get(key)}
    return " ".join(f"{key}={value}" for key, value in shown.items()) or "(libpq defaults)"


async def connect(dsn: str, database: Database, *, name: str, by_index: bool = False) -> AsyncConnection:
    """An open autocommit connection. Raises DatabaseUnavailable."""
    info = conninfo(dsn, database, name=name, by_index=by_index)
    hosts = str(conninfo_to_dict(info).get("host") or "").count(",") + 1
    road = Road(database.statement_timeout_s)
    try:
        async with asyncio.timeout(database.connect_timeout_s * (hosts + 1)):  # each host has connect_timeout_s
            return await BoundedAsyncConnection.connect(info, autocommit=True, road=road)
    except (psycopg.Error, TimeoutError, OSError) as error:
        raise unavailable(error, describe(dsn)) from error


def connect_sync(dsn: str, database: Database, *, name: str) -> Connection:
    """An open autocommit connection for code without an event loop. Raises DatabaseUnavailable."""
    info = conninfo(dsn, database, name=name)
    try:
        return BoundedConnection.connect(info, autocommit=True, road=Road(database.statement_timeout_s))
    except (psycopg.Error, OSError) as error:
        raise unavailable(error, describe(dsn)) from error


async def connect_for_turns(dsn: str, database: Database, *, name: str) -> AsyncConnection:
    """A connection for a shard: json arrives as bytes and timestamptz as microseconds since 2000-01-01, undecoded."""
    conn = await connect(dsn, database, name=name)
    try:
        conn.adapters.register_loader("json", ByteaBinaryLoader)
        conn.adapters.register_loader("timestamptz", Int8BinaryLoader)
        conn.prepare_threshold = 0
        await conn.execute(TURN_SETTINGS, prepare=False)
    except BaseException:
        await conn.close()
        raise
    return conn


def _without_values(error: Exception) -> str:
    """libpq quotes the offending part of a DSN, which may be a password: keep only what stands before the quote."""
    return str(error).split('"')[0].strip() or type(error).__name__
