"""Every error that wqcore raises is a `WqcoreError`, and its text says what the reader should do.

The tree::

    WqcoreError
    ├── ConfigError        a setting is wrong; `.problems` lists all of them at once
    ├── SchemaError        the database schema is missing, older or newer than this code
    ├── DatabaseUnavailable  PostgreSQL cannot be reached, or refuses for now; repeating later is right
    │   └── DiskFull       its disk is full; nothing was written
    ├── NotPermitted       the user of the connection lacks a right on the schema
    ├── InsertError        a job was refused and nothing was written
    │   ├── UnknownKind    no such kind in the catalog
    │   ├── PlannedKind    the kind is declared, but its handler is not written yet
    │   ├── UnknownQueue   no such queue in the database
    │   ├── InvalidArgs    the arguments do not fit the kind's type
    │   ├── WrongDatabase  the connection of insert_tx leads to another database than the queue's
    │   └── ArgsTooLarge   the encoded arguments exceed `insert.args_bytes_max`
    ├── InvalidLimits      a limit of a queue is out of range or unknown
    ├── InvalidSchedule    a recurring job is described in a way that cannot work
    ├── UnknownSchedule    no schedule has that name
    ├── InvalidRequest     a filter or a new value for jobs is not acceptable
    │   └── InvalidSearch  a search text has a qualifier or a value that is not known
    ├── UnknownMaster      no master has that pid, id or host
    ├── NotInspectable     a process whose stack was asked for cannot be asked
    ├── JobNotFound        no such job, unfinished or in the history
    ├── JobFailed          the job whose output was asked for was cancelled or discarded
    ├── DeclarationError   a kind or a handler is declared in a way that cannot work
    ├── PreloadError       a module did at import what must not happen before a fork
    ├── HookFailed         a start hook of the program failed, so its worker did not start
    ├── OutputTooLarge     what a job leaves behind exceeds its limit
    ├── NotDrained         a test's drain found more to do than its time allowed
    └── LeaseLost          this run was superseded: another process owns the job now
"""

from __future__ import annotations

from collections.abc import Sequence


class WqcoreError(Exception):
    """Base of all errors raised by wqcore."""


class ConfigError(WqcoreError):
    """One or more settings are wrong.

    `problems` (list of str) has one sentence a problem; each names its key and the fix.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__("; ".join(self.problems))


class SchemaError(WqcoreError):
    """The schema in the database does not fit this version of wqcore."""


class DatabaseUnavailable(WqcoreError):
    """PostgreSQL could not be reached or refused the session; the operation may be repeated."""


class DiskFull(DatabaseUnavailable):
    """PostgreSQL has no room left on its disk. Nothing was written; the same call can succeed once there is room."""


class NotPermitted(WqcoreError):
    """The user of the connection may not do this in the schema; the text names what, and the role that may."""


class InsertError(WqcoreError):
    """A job was refused; nothing was written."""


class UnknownKind(InsertError):
    """The kind is not in the catalog."""


class PlannedKind(InsertError):
    """The kind is declared as planned: it has a type, but no handler yet."""


class UnknownQueue(InsertError):
    """The queue is not known to the database, so nothing would consume it."""


class WrongDatabase(InsertError):
    """The caller's connection leads to another database than that of the queue; the text names both."""


class InvalidArgs(InsertError):
    """The arguments do not fit the kind's type; the text names the field."""


class ArgsTooLarge(InsertError):
    """The encoded arguments are larger than `insert.args_bytes_max`."""


class InvalidLimits(WqcoreError):
    """A limit of a queue is out of range or unknown; nothing was changed."""


class InvalidSchedule(WqcoreError):
    """A recurring job is described in a way that cannot work; nothing was changed."""


class UnknownSchedule(WqcoreError):
    """No schedule has that name."""


class InvalidRequest(WqcoreError):
    """A filter, or a new value for jobs, is not acceptable; nothing was changed."""


class InvalidSearch(InvalidRequest):
    """A search text has a qualifier or a value that is not known; the text lists those that are."""


class UnknownMaster(WqcoreError):
    """No master has that pid, id or host."""


class NotInspectable(WqcoreError):
    """The process is not one of wqcore's, belongs to another user, or cannot answer; it was left alone."""


class JobNotFound(WqcoreError):
    """The job is neither unfinished nor in the history."""


class JobFailed(WqcoreError):
    """The job has ended without an output.

    Attributes:
        job_id (int), state (str): `cancelled` or `discarded`.
        error (str | None): the text of its last error.
    """

    def __init__(self, job_id: int, state: str, error: str | None) -> None:
        self.job_id, self.state, self.error = job_id, str(state), error
        super().__init__(
            f"job {job_id} was {state}: {error or 'it has no error'}; `Client.job` has all its errors, `Client.retry` "
            "runs it again"
        )


class DeclarationError(WqcoreError):
    """A kind or handler is declared in a way that cannot work."""


class PreloadError(WqcoreError):
    """A preloaded module started a thread, opened a socket or left a running loop before the fork."""


class HookFailed(WqcoreError):
    """A start hook raised or did not end in time; the text names it."""


class OutputTooLarge(WqcoreError):
    """The output of a job exceeds its limit; fail the run or make it smaller."""


class NotDrained(WqcoreError):
    """`wqcore.testing.drain` ran out of time; the text says which jobs are left and why."""


class LeaseLost(WqcoreError):
    """The shard that ran this job has lost its lease; the newest run decides the outcome."""
