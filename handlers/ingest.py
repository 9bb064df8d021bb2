"""Events come in once: a repeat of an event's id in its environment changes nothing and finds the first record.

One statement writes the records that are new and enqueues a deliverEvent for each of those, so a crash leaves either
none of a batch or all of it, and a sender that repeats it is right to do so.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from handlers import ids, store
from handlers.protocol import Instant

Name = Annotated[str, Meta(min_length=1, max_length=512)]


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


class RawEvent(msgspec.Struct, frozen=True, rename="camel"):
    """An event as it is sent: by programs, in the answer of a source, in the output of a run."""

    name: Name
    payload: Any = None
    id: Name | None = None
    context: Any = None
    timestamp: Instant | None = None
    source: Name | None = None

    def event(
        self,
        id_unless_given: str,
        *,
        account_id: str | None = None,
        deliver_at: dt.datetime | None = None,
        source_context: Any = None,
    ) -> Event:
        """The event that it makes."""
        return Event(
            id=self.id or id_unless_given,
            name=self.name,
            payload=self.payload,
            source=self.source or "trigger.dev",
            context=self.context,
            timestamp=self.timestamp,
            deliver_at=deliver_at,
            source_context=source_context,
            account_id=account_id,
        )


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
