"""wqcore: a job executor on PostgreSQL.

The public names are those below. How a job travels, in reading order:

    catalog     what kinds of jobs exist              job, outcome   what a handler receives and may say
    client      inserting, and asking (control/)       line/          insert → turn → execute → settle
    shard       one worker's loop                     upkeep/        beat, rescue, retire
    keeper      upkeep on its clocks                  proc/          board, children, worker, master
    settings    every option and its default          db/            connections, statements, migrations
"""

from __future__ import annotations

from wqcore.catalog import Catalog, Kind, catalog, handler, kind, resolve_queue
from wqcore.client import Client, SyncClient
from wqcore.control.changes import Changed
from wqcore.control.filters import JobFilter
from wqcore.control.jobs import FailedAttempt, JobInfo
from wqcore.control.outcomes import Gap, OutcomeEvent
from wqcore.errors import (
    ArgsTooLarge,
    ConfigError,
    DatabaseUnavailable,
    DeclarationError,
    InsertError,
    InvalidArgs,
    InvalidLimits,
    InvalidRequest,
    JobFailed,
    JobNotFound,
    LeaseLost,
    OutputTooLarge,
    PlannedKind,
    PreloadError,
    SchemaError,
    UnknownKind,
    UnknownQueue,
    WqcoreError,
)
from wqcore.job import Job, JobState, Unique
from wqcore.line.insert import Inserted, InsertedMany, InsertOptions
from wqcore.outcome import Cancel, Discard, Outcome, Retry, Snooze
from wqcore.resource import app_settings, resource
from wqcore.settings import Settings, load
from wqcore.version import VERSION

__version__ = VERSION

__all__ = [
    "ArgsTooLarge",
    "Cancel",
    "Catalog",
    "Changed",
    "Client",
    "ConfigError",
    "DatabaseUnavailable",
    "DeclarationError",
    "Discard",
    "FailedAttempt",
    "Gap",
    "InsertError",
    "InsertOptions",
    "Inserted",
    "InsertedMany",
    "InvalidArgs",
    "InvalidLimits",
    "InvalidRequest",
    "Job",
    "JobFailed",
    "JobFilter",
    "JobInfo",
    "JobNotFound",
    "JobState",
    "Kind",
    "LeaseLost",
    "Outcome",
    "OutcomeEvent",
    "OutputTooLarge",
    "PlannedKind",
    "PreloadError",
    "Retry",
    "SchemaError",
    "Settings",
    "Snooze",
    "SyncClient",
    "Unique",
    "UnknownKind",
    "UnknownQueue",
    "WqcoreError",
    "app_settings",
    "catalog",
    "handler",
    "kind",
    "load",
    "resolve_queue",
    "resource",
]
