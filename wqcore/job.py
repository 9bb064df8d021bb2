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
from typing import TYPE_CHECKING, Any, Literal, Protocol, overload

import msgspec

from wqcore.errors import InsertError, OutputTooLarge

if TYPE_CHECKING:
    from collections.abc import Coroutine

    import psycopg

PRIORITY_MIN, PRIORITY_MAX = -1000, 1000
ATTEMPTS_MAX = 1000
NAME_BYTES_MAX = 128
"""Bytes (UTF-8) in the name of a kind or queue, in a serial key and in a job key."""
ERRORS_KEPT_MAX = 10
ERROR_TEXT_CHARS_MAX = 8_000
SLOTS_MAX = 256

JobKeyMode = Literal["replace", "preserve_run_at", "unsafe_dedupe"]
"""What happens when an unfinished job has the job key already; `InsertOptions` tells it."""

_PG_EPOCH = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)


def table_us(at: dt.datetime) -> int:
    """A time as the tables have it: microseconds since 2000."""
    return (at - _PG_EPOCH) // dt.timedelta(microseconds=1)


class JobState(enum.StrEnum):
    """The state of a job, as the view `jobs` shows it."""

    AVAILABLE = "available"
    SCHEDULED = "scheduled"
    RETRYABLE = "retryable"
    RUNNING = "running"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    DISCARDED = "discarded"


FINISHED = frozenset({JobState.COMPLETED, JobState.CANCELLED, JobState.DISCARDED})


class Unique(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What makes two jobs of a kind the same, so that the second one is not inserted.

    Attributes:
        args (bool or tuple of str): True: all args are the same; names of fields: these are; False: any args.
        queue (bool): only within one queue.
        period_s (float | None): only within the same period of so many seconds (by run_at, else the time of the insert;
            periods begin at multiples of it since 1970-01-01 UTC).
        states (tuple of str): finished states that count too: completed, cancelled, discarded, for as long as the
            history keeps them. Unfinished jobs always count.
    """

    args: bool | tuple[str, ...] = True
    queue: bool = False
    period_s: float | None = None
    states: tuple[JobState, ...] = ()

    def spec(self, args_type: type[msgspec.Struct]) -> str:
        """This as JSON for the SQL function unique_key_of, with the fields as they are encoded. Raises InsertError."""
        wire = {field.name: field.encode_name for field in msgspec.structs.fields(args_type)}
        by: dict[str, Any] = {"queue": self.queue, "args": self.args}
        if isinstance(self.args, tuple):
            unknown = [name for name in self.args if name not in wire and name not in wire.values()]
            if unknown or not self.args:
                raise InsertError(f"unique: args {list(self.args)} are not among the fields {list(wire)}")
            by["args"] = sorted(wire.get(name, name) for name in self.args)
        if self.period_s is not None:
            if not 0 < self.period_s < 1e10:
                raise InsertError(f"unique: period_s {self.period_s} is not a number of seconds above 0")
            by["period_s"] = self.period_s
        by["states"] = [state for state in self.states if state in FINISHED]
        return msgspec.json.encode(by).decode()


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


OUTPUT_BYTES_MAX = 256 * 1024
"""Bytes of a job's output, encoded as JSON."""


class RunSide(Protocol):
    """What a running job asks of whoever runs it."""

    def complete_tx(self, job: Job, conn: Any) -> Any: ...
    def progress(self, job_id: int, fraction: float, note: str | None) -> None: ...
    def stopping(self, job: Job) -> bool: ...


class Job(msgspec.Struct, eq=False, gc=False):
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

    _row: tuple[Any, ...]
    queue: str
    _run_side: RunSide
    _output: str | None = None

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

    def output(self, value: object) -> None:
        """Sets what the job leaves behind when it completes: any value that msgspec can encode as JSON.

        The last call counts; a run that fails leaves none. Raises OutputTooLarge or TypeError.
        """
        data = msgspec.json.encode(value)
        if len(data) > OUTPUT_BYTES_MAX:
            raise OutputTooLarge(
                f"the output of job {self.id} takes {len(data)} bytes; at most {OUTPUT_BYTES_MAX} are kept: store the "
                "bulk elsewhere and put a reference into the output"
            )
        self._output = data.decode()

    def progress(self, fraction: float, note: str | None = None) -> None:
        """Says how far the job is (0 to 1), for `wqcore status`, the view `jobs` and `Client.job`.

        Cheap to call often: at most one a second of each job is written. Raises ValueError.
        """
        if not 0 <= fraction <= 1:
            raise ValueError(f"progress is a number from 0 to 1, not {fraction!r}")
        self._run_side.progress(self.id, fraction, note)

    @property
    def stopping(self) -> bool:
        """True once this run should end: it was cancelled or timed out, has ended, or its worker drains.

        For code that cannot be cancelled, such as a handler in a thread: look often, and leave with
        `raise wqcore.Snooze(0)`, which gives the job back. An `async def` handler is cancelled by itself.
        """
        return self._run_side.stopping(self)

    @overload
    def complete_tx(self, conn: psycopg.AsyncConnection[Any]) -> Coroutine[Any, Any, None]: ...
    @overload
    def complete_tx(self, conn: psycopg.Connection[Any]) -> None: ...

    def complete_tx(self, conn: Any) -> Any:
        """Completes this job inside the caller's open transaction on `conn`: both commit, or neither does.

        On the event loop `conn` is a psycopg.AsyncConnection and the call is awaited; in a thread (a `def` handler, or
        what `asyncio.to_thread` runs) it is a psycopg.Connection, and the call itself does it.

        Raises:
            LeaseLost: this run was superseded by a newer one; let it pass, so that the transaction rolls back.
            TypeError: the connection is of the other sort.
        """
        return self._run_side.complete_tx(self, conn)

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.kind} attempt {self.attempt}/{self.max_attempts}>"


def check_name(what: str, name: str) -> str | None:
    """The problem with `name` as the name of a `what` (kind, queue, serial key, job key), or None if it is fine."""
    if not name:
        return f"the {what} is empty; give it a name of 1 to {NAME_BYTES_MAX} bytes"
    if "\x00" in name:
        return f"the {what} {name!r} contains a NUL character, which PostgreSQL cannot store; remove it"
    if name.isspace() and not what.endswith("key"):
        return f"the {what} {name!r} is all blanks; give it a name that can be read"
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return f"the {what} {name!r} contains a lone surrogate, which UTF-8 cannot encode; remove it"
    if size > NAME_BYTES_MAX:
        return f"the {what} {name[:40]!r}… has {size} bytes; at most {NAME_BYTES_MAX} are allowed, so shorten it"
    return None
