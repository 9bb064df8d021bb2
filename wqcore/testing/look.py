"""Asks of a test: was this job inserted; and moves the time on. Both on the test's own connection, sync or asyncio.

`assert_inserted` reads only. `travel` is one statement in the caller's transaction: rolled back, nothing has moved.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, overload

import msgspec

from wqcore.catalog import Catalog
from wqcore.catalog import catalog as default_catalog
from wqcore.db.connect import AsyncConnection, Connection
from wqcore.db.request import Query, Request
from wqcore.errors import UnknownKind
from wqcore.testing.ask import ask

SHOWN_MAX = 10
NO_TIME = dt.timedelta()
KindName = str | type[msgspec.Struct]
Args = msgspec.Struct | Mapping[str, Any] | None


@overload
def assert_inserted(
    conn: AsyncConnection,
    kind: KindName,
    *,
    args: Args = None,
    n: int | None = 1,
    queue: str | None = None,
    priority: int | None = None,
    serial_key: str | None = None,
    job_key: str | None = None,
    state: str | None = None,
    schema: str = "wqcore",
    catalog: Catalog = default_catalog,
) -> Awaitable[list[int]]: ...
@overload
def assert_inserted(
    conn: Connection,
    kind: KindName,
    *,
    args: Args = None,
    n: int | None = 1,
    queue: str | None = None,
    priority: int | None = None,
    serial_key: str | None = None,
    job_key: str | None = None,
    state: str | None = None,
    schema: str = "wqcore",
    catalog: Catalog = default_catalog,
) -> list[int]: ...
def assert_inserted(
    conn: Any,
    kind: KindName,
    *,
    args: Args = None,
    n: int | None = 1,
    queue: str | None = None,
    priority: int | None = None,
    serial_key: str | None = None,
    job_key: str | None = None,
    state: str | None = None,
    schema: str = "wqcore",
    catalog: Catalog = default_catalog,
) -> Any:
    """Asserts that `n` jobs of a kind were inserted; the ids of those that it found, oldest first.

    Jobs in every state count, also those that have ended and are kept in the history. On an asyncio connection await
    it: `await assert_inserted(conn, …)`.

    Args:
        conn: sees what its own transaction has inserted, also before the commit.
        kind: the kind's name or its args type.
        args: an args struct, which must be equal, or a mapping of the fields (by their names in JSON) that must match.
        n: how many; None: at least one; 0: none.
        queue, priority, serial_key, job_key, state: what else must be so; None: anything.

    Raises AssertionError, whose text lists what was there instead; UnknownKind for a type that is not declared.
    """
    name = kind if isinstance(kind, str) else _name_of(kind, catalog)
    wanted: dict[str, Any] = {
        "queue": queue,
        "priority": priority,
        "serial_key": serial_key,
        "job_key": job_key,
        "state": state,
    }
    wanted = {field: value for field, value in wanted.items() if value is not None}
    return ask(conn, _assertion(name, args, n, wanted), schema)


@overload
def travel(
    conn: AsyncConnection,
    by: dt.timedelta = NO_TIME,
    *,
    days: float = 0,
    hours: float = 0,
    minutes: float = 0,
    seconds: float = 0,
    schema: str = "wqcore",
) -> Awaitable[None]: ...
@overload
def travel(
    conn: Connection,
    by: dt.timedelta = NO_TIME,
    *,
    days: float = 0,
    hours: float = 0,
    minutes: float = 0,
    seconds: float = 0,
    schema: str = "wqcore",
) -> None: ...
def travel(
    conn: Any,
    by: dt.timedelta = NO_TIME,
    *,
    days: float = 0,
    hours: float = 0,
    minutes: float = 0,
    seconds: float = 0,
    schema: str = "wqcore",
) -> Any:
    """Lets so much time pass for wqcore's tables: everything in them becomes that much older.

    What moves: a job's `run_at` (so that what was scheduled or waits for its retry becomes due) and `created_at`; all
    times of finished jobs including their expiry; last and next tick of schedules; when a queue was paused, a
    cancellation asked for, progress reported. What stays: the clock of the database, the leases and beats of workers,
    the times inside `errors`, and unique keys with a period, since they are computed at the insert.

    A worker that runs meanwhile sees it at its next poll. On an asyncio connection await it. Raises ValueError unless
    the time is above 0.
    """
    total = (by + dt.timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)).total_seconds()
    if total <= 0:
        raise ValueError(f"travel goes into the future only: pass hours=…, or a timedelta above 0, not {total:g} s")
    return ask(conn, _move(total), schema)


def _move(seconds: float) -> Request[None]:
    yield Query("travel", {"seconds": seconds})


def _assertion(kind: str, args: Args, n: int | None, wanted: Mapping[str, Any]) -> Request[list[int]]:
    rows = yield Query("inserted", {"kind": kind})
    jobs = [_Found(*row) for row in rows]
    found = [job.id for job in jobs if _fits(job, args, wanted)]
    if len(found) == n or (n is None and found):
        return found
    kinds = [] if jobs else (yield Query("inserted_kinds"))
    raise AssertionError(_difference(kind, args, n, wanted, len(found), jobs, kinds))


class _Found:
    def __init__(
        self,
        job_id: int,
        state: str,
        queue: str,
        priority: int,
        serial_key: str | None,
        job_key: str | None,
        args: bytes,
    ) -> None:
        self.id = job_id
        self.state = state
        self.queue = queue
        self.priority = priority
        self.serial_key = serial_key
        self.job_key = job_key
        self.args = msgspec.json.decode(args)

    def __str__(self) -> str:
        keys = [f"{name}={getattr(self, name)}" for name in ("serial_key", "job_key") if getattr(self, name) is not None]
        return " ".join(
            [f"job {self.id}: {self.state} queue={self.queue} priority={self.priority}", *keys, f"args={self.args}"]
        )


def _fits(job: _Found, args: Args, wanted: Mapping[str, Any]) -> bool:
    if any(getattr(job, field) != value for field, value in wanted.items()):
        return False
    if isinstance(args, msgspec.Struct):
        try:
            return bool(msgspec.convert(job.args, type(args)) == args)
        except msgspec.ValidationError:  # inserted from elsewhere, with other args than the type takes
            return False
    return args is None or all(name in job.args and job.args[name] == value for name, value in _plain(args).items())


def _plain(args: Mapping[str, Any]) -> dict[str, Any]:
    """The values as they look in JSON."""
    return msgspec.json.decode(msgspec.json.encode(dict(args)))  # type: ignore[no-any-return]


def _difference(
    kind: str,
    args: Args,
    n: int | None,
    wanted: Mapping[str, Any],
    found: int,
    jobs: Sequence[_Found],
    kinds: Sequence[tuple[Any, ...]],
) -> str:
    expected = f"{'at least 1' if n is None else n} of kind {kind}"
    also = [f"{field}={value}" for field, value in wanted.items()]
    if args is not None:
        also.append(f"args={args}")
    if also:
        expected += " with " + ", ".join(also)
    if jobs:
        there = [str(job) for job in jobs[:SHOWN_MAX]]
        there += [f"… and {len(jobs) - SHOWN_MAX} more of this kind"] if len(jobs) > SHOWN_MAX else []
    else:
        there = [f"none of this kind, but {count} of kind {other}" for other, count in kinds] or ["no job at all"]
    return "\n  ".join([f"expected jobs: {expected}; found {found}. There are:", *there])


def _name_of(args_type: type[msgspec.Struct], catalog: Catalog) -> str:
    for kind in catalog:
        if kind.args_type is args_type:
            return kind.name
    raise UnknownKind(f"{args_type.__name__} is not declared as a kind; put @wqcore.kind(...) on it, or pass the name")
