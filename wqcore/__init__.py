"""wqcore: a job executor on PostgreSQL.

The public names are those below. How a job travels, in reading order:

    catalog     what kinds of jobs exist              job, outcome   what a handler receives and may say
    signature   which forms a handler may have        around, hooks  middleware; what runs at start and stop
    client      inserting, and asking (control/)      line/          insert → turn → execute → settle
    shard       one worker's loop                     upkeep/        beat, rescue, cron, cancels, retire
    keeper      upkeep on its clocks                  proc/          board, children, worker, master
    attach      a program beside the workers
    settings    every option and its default          db/            connections, statements, migrations
"""

from __future__ import annotations

from wqcore.attach import attached
from wqcore.catalog import (
    Catalog,
    Kind,
    catalog,
    handler,
    insert_middleware,
    kind,
    resolve_queue,
    work_middleware,
)
from wqcore.client import Client, SyncClient
from wqcore.client.own import current_client
from wqcore.control.changes import Changed
from wqcore.control.filters import JobFilter
from wqcore.control.jobs import FailedAttempt, JobInfo, LogLine
from wqcore.control.outcomes import Gap, OutcomeEvent
from wqcore.control.schedules import ScheduleInfo
from wqcore.db.migrate import migrations
from wqcore.db.statements import Statements
from wqcore.errors import (
    ArgsTooLarge,
    ConfigError,
    DatabaseUnavailable,
    DeclarationError,
    DiskFull,
    HookFailed,
    InsertError,
    InvalidArgs,
    InvalidLimits,
    InvalidRequest,
    InvalidSchedule,
    JobFailed,
    JobNotFound,
    LeaseLost,
    NotPermitted,
    OutputTooLarge,
    PlannedKind,
    PreloadError,
    SchemaError,
    UnknownKind,
    UnknownQueue,
    UnknownSchedule,
    WqcoreError,
    WrongDatabase,
)
from wqcore.hooks import on_start, on_stop
from wqcore.job import Job, JobState, Unique
from wqcore.line.current import current_job
from wqcore.line.insert import Inserted, InsertedMany, InsertOptions
from wqcore.outcome import Cancel, Discard, Outcome, Retry, Snooze
from wqcore.recurring import recurring
from wqcore.resource import AppSettings, app_settings, resource, settings_for
from wqcore.settings import Settings, load
from wqcore.signature import BatchItem
from wqcore.version import VERSION
from wqcore.watch.log import JobContextFilter, set_up_logging

__version__ = VERSION

__all__ = [
    "AppSettings",
    "ArgsTooLarge",
    "BatchItem",
    "Cancel",
    "Catalog",
    "Changed",
    "Client",
    "ConfigError",
    "DatabaseUnavailable",
    "DeclarationError",
    "Discard",
    "DiskFull",
    "FailedAttempt",
    "Gap",
    "HookFailed",
    "InsertError",
    "InsertOptions",
    "Inserted",
    "InsertedMany",
    "InvalidArgs",
    "InvalidLimits",
    "InvalidRequest",
    "InvalidSchedule",
    "Job",
    "JobContextFilter",
    "JobFailed",
    "JobFilter",
    "JobInfo",
    "JobNotFound",
    "JobState",
    "Kind",
    "LeaseLost",
    "LogLine",
    "NotPermitted",
    "Outcome",
    "OutcomeEvent",
    "OutputTooLarge",
    "PlannedKind",
    "PreloadError",
    "Retry",
    "ScheduleInfo",
    "SchemaError",
    "Settings",
    "Snooze",
    "Statements",
    "SyncClient",
    "Unique",
    "UnknownKind",
    "UnknownQueue",
    "UnknownSchedule",
    "WqcoreError",
    "WrongDatabase",
    "app_settings",
    "attached",
    "catalog",
    "current_client",
    "current_job",
    "handler",
    "insert_middleware",
    "kind",
    "load",
    "migrations",
    "on_start",
    "on_stop",
    "recurring",
    "resolve_queue",
    "resource",
    "set_up_logging",
    "settings_for",
    "work_middleware",
]
