"""A schedule's tick invokes its jobs and enqueues the next tick."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any

import msgspec

import wqcore

Instant = Annotated[dt.datetime, msgspec.Meta(tz=True)]
"""A point in time; on the wire ISO 8601 with a zone."""


class Tick(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """One tick of a schedule.

    Attributes:
        ts (datetime with time zone): when it was due.
        last_timestamp (datetime with time zone | None): the tick before; None for the first.
    """

    ts: Instant
    last_timestamp: Instant | None = None


@wqcore.kind("events.deliverScheduled", queue="default", max_attempts=5, timeout_s=60)
class DeliverScheduled(msgspec.Struct, frozen=True, rename="camel"):
    """Delivers one tick of a schedule.

    Its call sites add what the args do not hold: serial key `scheduler-<environmentId>`, job key `scheduled:<id>`.

    Attributes:
        id (str): the schedule source.
        payload (Tick): the tick.
    """

    id: str
    payload: Tick


@wqcore.kind("registerDynamicSchedule", queue="default", max_attempts=3, timeout_s=60)
class RegisterDynamicSchedule(msgspec.Struct, frozen=True, rename="camel"):
    """Stores a dynamic schedule and connects its jobs.

    Attributes:
        endpoint_id (str): the endpoint that declares it.
        dynamic_schedule (dict): its metadata, as the endpoint sent it.
    """

    endpoint_id: str
    dynamic_schedule: dict[str, Any]
