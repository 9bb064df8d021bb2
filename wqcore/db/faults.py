"""What an error of PostgreSQL means for us: repeat later, never repeat, or give up; the only place that reads SQLSTATEs."""

from __future__ import annotations

import psycopg

from wqcore.errors import DatabaseUnavailable, InsertError, NotPermitted, SchemaError

_REPEAT_LATER_CLASSES = (
    "08",  # connection exception
    "25",  # invalid transaction state, e.g. 25006: the server is read-only until its failover ends
    "40",  # rollback: serialisation failure, deadlock
    "53",  # insufficient resources: too many connections, disk full, out of memory
    "55P03",  # lock not available within lock_timeout
    "57",  # operator intervention: shutdown, crash, statement cancelled, cannot connect now
    "58",  # system error: I/O
    "XX",  # internal error
)
_FULL = ("too many clients already", "remaining connection slots are reserved", "too many connections for")
"""libpq says of a refused connection no SQLSTATE (it is 53300), only this text."""
_FULL_HINT = (
    "All connections that max_connections allows are taken (or those that this role or database may have): see in "
    "pg_stat_activity who has them, end the idle ones or give those programs smaller pools, or raise max_connections. wqcore "
    "needs one for each worker process, one for each master, and up to 8 for each client"
)
_NO_SCHEMA = {"42P01", "3F000", "42703", "42883"}  # undefined table, schema, column, function


def is_transient(error: BaseException) -> bool:
    """True when the same statement can succeed later, perhaps on a new connection."""
    if isinstance(error, DatabaseUnavailable | TimeoutError | OSError):
        return True
    if not isinstance(error, psycopg.Error):
        return False
    state = error.sqlstate
    if state is None:
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return state.startswith(_REPEAT_LATER_CLASSES)


def lost_connection(error: BaseException) -> bool:
    """True when the fate of the statement is unknown: the reply may have been lost after a commit."""
    if not isinstance(error, psycopg.Error):
        return isinstance(error, TimeoutError | OSError)
    return error.sqlstate is None or error.sqlstate.startswith(("08", "57P"))


def unavailable(error: BaseException, where: str) -> DatabaseUnavailable:
    """The error as a sentence for people: what failed, and where the DSN led.

    Not the server's details and context: those of a COPY quote the job at which it stopped, with its args.
    """
    primary = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    text = " ".join((primary or str(error)).split()) or type(error).__name__
    hint = f". {_FULL_HINT}" if any(sign in text for sign in _FULL) else ""
    return DatabaseUnavailable(f"cannot use PostgreSQL at {where}: {text}{hint}")


def schema_problem(error: BaseException, schema: str) -> SchemaError | None:
    """A SchemaError when `error` says that our tables are not there, else None."""
    if isinstance(error, psycopg.Error) and error.sqlstate in _NO_SCHEMA:
        return SchemaError(
            f"the schema {schema!r} is missing or too old for this version of wqcore: run `wqcore migrate`"
        )
    return None


def not_permitted(error: BaseException, schema: str) -> NotPermitted | None:
    """A NotPermitted when the user of the connection lacks a right, else None."""
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return NotPermitted(
            f"{error.diag.message_primary} of schema {schema!r}: use the user that a role of `wqcore migrate --roles` was "
            "granted to which may do this (runner, inserter, producer, observer)"
        )
    return None


def refusal(error: BaseException) -> InsertError | None:
    """An InsertError when the SQL function `enqueue` has refused a job, with its hint; else None."""
    if isinstance(error, psycopg.Error) and error.sqlstate == "22023":
        hint = f". {error.diag.message_hint}" if error.diag.message_hint else ""
        return InsertError(f"{error.diag.message_primary}{hint}")
    return None


def waited_too_long(error: BaseException) -> bool:
    """True when a lock was not to be had within lock_timeout: somebody else's transaction stays open."""
    return isinstance(error, psycopg.errors.LockNotAvailable)


def one_line(error: BaseException) -> str:
    """An error as one line for a log: its first line, no values of parameters."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
