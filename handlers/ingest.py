"""Events come in once: a repeat of an event's id in its environment changes nothing and finds the first record.

One statement writes the records that are new and enqueues a deliverEvent for each of those, so a crash leaves either
none of a batch or all of it, and a sender that repeats it is right to do so.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

import msgspec

from handlers import ids, store


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """An event on its way in.

    Attributes:
        id (str): unique within its environment.
        name (str), source (str): what dispatchers listen for.
        payload (any JSON), context (any JSON): what the runs get.
        timestamp (datetime with time zone | None): when it happened; None = now.
        deliver_at (datetime with time zone | None): not before this time; None = now.
        source_context (any JSON): which source it came from, for the runs.
        account_id (str | None): whose connections the runs use.
    """

    id: str
    name: str
    payload: Any = None
    source: str = "trigger.dev"
    context: Any = None
    timestamp: dt.datetime | None = None
    deliver_at: dt.datetime | None = None
    source_context: Any = None
    account_id: str | None = None


async def ingest(
    on: store.Store | store.Transaction, environment_id: str, events: Sequence[Event], *, deliver: bool = True
) -> list[store.Row]:
    """Writes `events` and enqueues their deliverEvent; the records, in this order, new or not.

    On a transaction it is part of that. `deliver=False` writes the records alone: the caller invokes the dispatcher.
    A record has the columns of event_record, and `is_new`.
    """
    records = [
        {
            "id": ids.new("evt"),
            "event_id": event.id,
            "name": event.name,
            "source": event.source,
            "payload": event.payload,
            "context": event.context,
            "source_context": event.source_context,
            "account_id": event.account_id,
            "timestamp": event.timestamp,
            "deliver_at": event.deliver_at,
        }
        for event in events
    ]
    if not records:
        return []
    values = {"environment": environment_id, "events": store.json(records), "deliver": deliver}
    found = await on.rows("ingest_events", **values)
    if len(found) < len(records):
        # another transaction committed an event of these between this statement's snapshot and its insert: now it is seen
        found = await on.rows("ingest_events", **values)
    return found
