"""Turns typed args into the row of a job, or refuses with an error that names the field and the fix.

Nothing reaches the database that its worker could not decode: the args are encoded and decoded once here. A slot is
chosen by the hash of the serial key (so that one shard sees all jobs of a key), or in turn when there is none.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self, TypedDict

import msgspec

from wqcore import clock
from wqcore.catalog import Kind
from wqcore.db.connect import BigIntArray
from wqcore.errors import ArgsTooLarge, InsertError, InvalidArgs, UnknownQueue
from wqcore.job import ATTEMPTS_MAX, PRIORITY_MAX, PRIORITY_MIN, JobKeyMode, Unique, check_name
from wqcore.settings import HOME
from wqcore.signature import where


class InsertOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a call may choose for one job; None keeps what the kind declares.

    Attributes:
        queue (str): another queue than the kind's.
        priority (int): −1000 … 1000, a higher number runs first.
        max_attempts (int): 1 … 1000.
        run_at (datetime with time zone): not before this time; None = now.
        serial_key (str): at most one job of a key runs at a time (more with the queue's `max_per_key`).
        metadata (mapping): JSON object kept beside the args.
        job_key (str): a name of your choice, unique among unfinished jobs.
        job_key_mode (str): what happens when an unfinished job has the key already. `replace`: a waiting job is
            overwritten and its attempts start anew. `preserve_run_at`: the same, but its run_at stays.
            `unsafe_dedupe`: it is left as it is, even when it runs. In the first two modes a job that runs already
            loses its key and its retries, and a new job is inserted.
        unique (Unique): insert nothing when such a job exists. Not together with job_key.
    """

    queue: str | None = None
    priority: int | None = None
    max_attempts: int | None = None
    run_at: dt.datetime | None = None
    serial_key: str | None = None
    metadata: Mapping[str, Any] | None = None
    job_key: str | None = None
    job_key_mode: JobKeyMode = "replace"
    unique: Unique | None = None


NO_OPTIONS = InsertOptions()


class Options(TypedDict, total=False):
    """The fields of `InsertOptions` as keywords of a call; a test holds the two together."""

    queue: str | None
    priority: int | None
    max_attempts: int | None
    run_at: dt.datetime | None
    serial_key: str | None
    metadata: Mapping[str, Any] | None
    job_key: str | None
    job_key_mode: JobKeyMode
    unique: Unique | None


def with_keywords(options: InsertOptions, keywords: Options) -> InsertOptions:
    """`options` with the keywords of a call put over them."""
    return msgspec.structs.replace(options, **keywords) if keywords else options


def seen_by(
    middlewares: Sequence[Callable[..., Any]], kind: Kind, args: msgspec.Struct, options: InsertOptions
) -> InsertOptions:
    """The options after the insert middleware. Raises what it raises, or InsertError when it returns something else."""
    for middleware in middlewares:
        options = middleware(kind, args, options)
        if not isinstance(options, InsertOptions):
            raise InsertError(
                f"insert middleware {where(middleware)} returned a {type(options).__name__}: return the options"
            )
    return options


class Inserted(int):
    """The id of a job, which also says what the insert did.

    Attributes:
        skipped (bool): such a job existed already; this is its id, and nothing was written.
        replaced (bool): a waiting job of the job key was overwritten; this is its id.
        database (str): the name of the database in which it is; `default` is that of the table [database].
    """

    skipped: bool
    replaced: bool
    database: str

    def __new__(cls, job_id: int, what: str = "inserted", database: str = HOME) -> Self:
        self = super().__new__(cls, job_id)
        self.database = database
        self.skipped = what == "skipped"
        self.replaced = what == "replaced"
        return self


class InsertedMany(int):
    """How many jobs a bulk insert added.

    Attributes:
        skipped (int): how many existed already and were left.
        replaced (int): how many overwrote a waiting job of their job key.
    """

    skipped: int
    replaced: int

    def __new__(cls, added: int, *, skipped: int = 0, replaced: int = 0) -> Self:
        self = super().__new__(cls, added)
        self.skipped = skipped
        self.replaced = replaced
        return self


class NewJob(NamedTuple):
    """The columns of a job to insert, in the order of `copy.sql`."""

    queue: str
    slot: int
    priority: int
    run_at: dt.datetime | None
    kind: str
    max_attempts: int
    serial_key: str | None
    metadata: str | None
    args: str


class KeyedJob(NamedTuple):
    """A job to insert that has a job key or must be unique; it goes through `insert_keyed.sql`."""

    job: NewJob
    job_key: str | None
    mode: str
    unique_by: str | None
    """JSON, as the SQL function unique_key_of reads it."""

    @property
    def order(self) -> str:
        """Rows of a batch are taken in this order, so that two batches do not lock each other out."""
        return self.job_key or f"{self.job.kind} {self.job.args}"


def columns_of(jobs: Sequence[KeyedJob], channels: Sequence[str | None]) -> dict[str, Any]:
    """The parameters of `insert_keyed.sql`."""
    return {
        "queues": [item.job.queue for item in jobs],
        "slots": BigIntArray([item.job.slot for item in jobs]),
        "priorities": BigIntArray([item.job.priority for item in jobs]),
        "run_ats": [item.job.run_at for item in jobs],
        "kinds": [item.job.kind for item in jobs],
        "max_attempts": BigIntArray([item.job.max_attempts for item in jobs]),
        "serial_keys": [item.job.serial_key for item in jobs],
        "metadata": [item.job.metadata for item in jobs],
        "args": [item.job.args for item in jobs],
        "job_keys": [item.job_key for item in jobs],
        "modes": [item.mode for item in jobs],
        "uniques": [item.unique_by for item in jobs],
        "channels": list(channels),
    }


class Inserter:
    """Makes rows for the queues that the database knows."""

    def __init__(self, slots: Mapping[str, int], args_bytes_max: int) -> None:
        self._slots = dict(slots)
        self._args_bytes_max = args_bytes_max
        self._next = clock.randrange(256)

    def row(self, kind: Kind, args: msgspec.Struct, options: InsertOptions = NO_OPTIONS) -> NewJob | KeyedJob:
        """The row for `args`. Raises UnknownQueue, InvalidArgs, ArgsTooLarge or InsertError."""
        text = self._encoded(kind, args)
        queue, serial_key = kind.queue, kind.serial_key(args) if kind.serial_key is not None else None
        priority, max_attempts, run_at, metadata = kind.priority, kind.max_attempts, None, None
        if options is not NO_OPTIONS:
            run_at, metadata = _checked(options)
            queue = options.queue if options.queue is not None else queue
            serial_key = options.serial_key if options.serial_key is not None else serial_key
            priority = options.priority if options.priority is not None else priority
            max_attempts = options.max_attempts if options.max_attempts is not None else max_attempts
        slots = self._slots.get(queue)
        if slots is None:
            known = ", ".join(sorted(self._slots)) or "none"
            raise UnknownQueue(
                f"unknown queue {queue!r} for kind {kind.name!r}; known are: {known}. Add [queues.{queue}] to the "
                "configuration of a master and start it (or run `wqcore migrate` with it), or correct the name"
            )
        if serial_key is not None:
            problem = check_name("serial key", serial_key)
            if problem:
                raise InsertError(problem)
            slot = slot_of(serial_key, slots)
        else:
            self._next += 1
            slot = self._next % slots
        job = NewJob(queue, slot, priority, run_at, kind.name, max_attempts, serial_key, metadata, text)
        if options.job_key is not None:
            return KeyedJob(job, options.job_key, options.job_key_mode, None)
        unique = options.unique or kind.unique
        return job if unique is None else KeyedJob(job, None, options.job_key_mode, unique.spec(kind.args_type))

    def _encoded(self, kind: Kind, args: msgspec.Struct) -> str:
        try:
            data = kind.encode(args)
            if len(data) <= self._args_bytes_max:
                kind.decode(data)
        except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
            raise InvalidArgs(f"args of {kind.name} do not fit {kind.args_type.__name__}: {error}") from None
        if len(data) > self._args_bytes_max:
            raise ArgsTooLarge(
                f"args of {kind.name} take {len(data)} bytes; insert.args_bytes_max is {self._args_bytes_max}: "
                "store the bulk elsewhere and pass a reference, or raise the limit"
            )
        if b"\\u0000" in data and _has_nul(msgspec.json.decode(data)):
            field = _field_with_nul(msgspec.json.decode(data))
            raise InvalidArgs(
                f"args of {kind.name}: {field} contains a NUL character, which PostgreSQL cannot store; remove it"
            )
        return data.decode()


def slot_of(serial_key: str, slots: int) -> int:
    """The slot of a serial key: the first four bytes of its SHA-256, modulo the queue's slots (SQL computes the same)."""
    return int.from_bytes(hashlib.sha256(serial_key.encode()).digest()[:4]) % slots


def _checked(options: InsertOptions) -> tuple[dt.datetime | None, str | None]:
    """run_at and encoded metadata of the options. Raises InsertError for a value out of range."""
    try:
        msgspec.convert(msgspec.structs.asdict(options), InsertOptions)
    except TypeError as error:
        raise InsertError(f"insert options: {error}") from None
    except msgspec.ValidationError as error:
        raise InsertError(f"insert options: {error}") from None
    if options.priority is not None and not PRIORITY_MIN <= options.priority <= PRIORITY_MAX:
        raise InsertError(f"priority {options.priority} is outside {PRIORITY_MIN} … {PRIORITY_MAX}")
    if options.max_attempts is not None and not 1 <= options.max_attempts <= ATTEMPTS_MAX:
        raise InsertError(f"max_attempts {options.max_attempts} is outside 1 … {ATTEMPTS_MAX}")
    if options.run_at is not None and options.run_at.tzinfo is None:
        raise InsertError(f"run_at {options.run_at} has no time zone; use datetime.now(UTC) or attach one")
    if options.job_key is not None:
        problem = check_name("job key", options.job_key)
        if problem:
            raise InsertError(problem)
        if options.unique is not None:
            raise InsertError(
                "a job has a job_key or is unique, not both: a job key is a name that you choose, unique makes one "
                "from the job itself"
            )
    if options.metadata is None:
        return options.run_at, None
    try:
        metadata = msgspec.json.encode(options.metadata).decode()
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
        raise InsertError(f"metadata cannot be written as JSON: {error}") from None
    return options.run_at, metadata


def _has_nul(value: object) -> bool:
    return _field_with_nul(value) != ""


def _field_with_nul(value: object, path: str = "$") -> str:
    """The JSON path of the first text with a NUL, or an empty string."""
    if isinstance(value, str):
        return path if "\x00" in value else ""
    if isinstance(value, dict):
        for key, inner in value.items():
            found = f"a key of {path}" if "\x00" in key else _field_with_nul(inner, f"{path}.{key}")
            if found:
                return found
    if isinstance(value, list):
        for index, inner in enumerate(value):
            found = _field_with_nul(inner, f"{path}[{index}]")
            if found:
                return found
    return ""
