"""What a job is: its states, its limits, and the `Job` that a handler receives.

States (the names are River's), and where a job in that state is found::

    available   a row in `job`, ready now            scheduled   a row in `job`, run_at in the future
    running     a row in `job`, named by a claim     retryable   scheduled, after at least one failed attempt
    completed, cancelled, discarded                  a row in `history`; a job never leaves these

Moves: available → running → completed | cancelled | discarded | retryable | scheduled (snoozed); scheduled and
retryable → available when their time comes; running → available when its worker gave it back unstarted.
"""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psycopg

PRIORITY_MIN, PRIORITY_MAX = -1000, 1000
ATTEMPTS_MAX = 1000
NAME_BYTES_MAX = 128
"""Bytes (UTF-8) in the name of a kind or queue, in a serial key and in a job key."""
ERRORS_KEPT_MAX = 10
ERROR_TEXT_CHARS_MAX = 8_000
SLOTS_MAX = 256

_PG_EPOCH = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)


class JobState(enum.StrEnum):
    """The state of a job, as the view `jobs` shows it."""

    AVAILABLE = "available"
    SCHEDULED = "scheduled"
    RETRYABLE = "retryable"
    RUNNING = "running"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    DISCARDED = "discarded"


class Row:
    """Positions in the tuple that the turn returns for each claimed job; the SQL names them in the same order."""

    (
        ID,
        SLOT,
        PRIORITY,
        KIND,
        REVISION,
        ATTEMPT,
        MAX_ATTEMPTS,
        DEATHS,
        SERIAL_KEY,
        RUN_AT,
        CREATED_AT,
        ARGS,
        METADATA,
    ) = range(13)


CompleteTx = Callable[["Job", "psycopg.AsyncConnection[Any]"], Awaitable[None]]


class Job:
    """One run of one job, as its handler sees it.

    Attributes:
        id (int): the same for all attempts.
        kind (str), queue (str), priority (int), serial_key (str | None): as stored.
        attempt (int): the number of this attempt, 1 for the first.
        max_attempts (int): after so many failed attempts the job is discarded.
        deaths (int): how many processes have died while they ran this job.
        created_at (datetime, UTC): the database's clock at insert.
        metadata (bytes | None): JSON as stored.
    """

    __slots__ = ("_complete_tx", "_row", "queue")

    def __init__(self, row: tuple[Any, ...], queue: str, complete_tx: CompleteTx) -> None:
        self._row = row
        self.queue = queue
        self._complete_tx = complete_tx

    @property
    def id(self) -> int:
        return self._row[Row.ID]  # type: ignore[no-any-return]

    @property
    def kind(self) -> str:
        return self._row[Row.KIND]  # type: ignore[no-any-return]

    @property
    def priority(self) -> int:
        return self._row[Row.PRIORITY]  # type: ignore[no-any-return]

    @property
    def attempt(self) -> int:
        return self._row[Row.ATTEMPT] + 1  # type: ignore[no-any-return]

    @property
    def max_attempts(self) -> int:
        return self._row[Row.MAX_ATTEMPTS]  # type: ignore[no-any-return]

    @property
    def deaths(self) -> int:
        return self._row[Row.DEATHS]  # type: ignore[no-any-return]

    @property
    def serial_key(self) -> str | None:
        return self._row[Row.SERIAL_KEY]  # type: ignore[no-any-return]

    @property
    def metadata(self) -> bytes | None:
        return self._row[Row.METADATA]  # type: ignore[no-any-return]

    @property
    def created_at(self) -> dt.datetime:
        return _PG_EPOCH + dt.timedelta(microseconds=self._row[Row.CREATED_AT])

    async def complete_tx(self, conn: psycopg.AsyncConnection[Any]) -> None:
        """Completes this job inside the caller's open transaction on `conn`: both commit, or neither does.

        Raises:
            LeaseLost: this run was superseded by a newer one; roll back and return.
        """
        await self._complete_tx(self, conn)

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.kind} attempt {self.attempt}/{self.max_attempts}>"


def check_name(what: str, name: str) -> str | None:
    """The problem with `name` as the name of a `what` (kind, queue, serial key, job key), or None if it is fine."""
    if not name:
        return f"the {what} is empty; give it a name of 1 to {NAME_BYTES_MAX} bytes"
    if "\x00" in name:
        return f"the {what} {name!r} contains a NUL character, which PostgreSQL cannot store; remove it"
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return f"the {what} {name!r} contains a lone surrogate, which UTF-8 cannot encode; remove it"
    if size > NAME_BYTES_MAX:
        return f"the {what} {name[:40]!r}… has {size} bytes; at most {NAME_BYTES_MAX} are allowed, so shorten it"
    return None
