"""An event that was received reaches every dispatcher whose filters match, once, and each dispatcher makes its runs once.

deliverEvent reads who listens, asks the filters, and writes in one statement `delivered_at` and an events.invokeDispatcher
for each match; that makes the runs and their startRun in one statement. A crash before either leaves the event as it was,
after it the repetition finds what was done.
"""

from __future__ import annotations

from typing import Any

import msgspec
import psycopg

import wqcore
from handlers import ids, store
from handlers.matcher import matches

INVOKED_MAX = 10
"""How often a dispatcher is asked again when the same invocation is at work beside it; each time one of them gets on."""


@wqcore.kind("deliverEvent", queue="event-dispatcher", max_attempts=3, timeout_s=120)
class DeliverEvent(msgspec.Struct, frozen=True, rename="camel"):
    """Finds the dispatchers that match an event.

    Attributes:
        id (str): the event record.
    """

    id: str


@wqcore.kind("events.invokeDispatcher", queue="default", max_attempts=3, timeout_s=30)
class InvokeDispatcher(msgspec.Struct, frozen=True, rename="camel"):
    """Makes the runs of one dispatcher for one event.

    Attributes:
        id (str): the dispatcher.
        event_record_id (str): the event.
    """

    id: str
    event_record_id: str


@wqcore.handler
async def deliver_event(args: DeliverEvent, job: wqcore.Job) -> None:
    """Invokes the dispatchers whose filters match. Raises wqcore.Discard when there is no such event."""
    db = await store.open_store()
    async with db.connection() as one:
        event = await one.row("event_candidates", event=args.id)
        if event is None:
            raise wqcore.Discard(f"no event record {args.id}")
        if not event.is_open:
            return  # delivered before, or cancelled
        matching = [
            dispatcher
            for dispatcher, payload_filter, context_filter in event.dispatchers
            if _passes(event.payload, payload_filter) and _passes(event.context, context_filter)
        ]
        await one.row("deliver_event", event=args.id, dispatchers=matching)


@wqcore.handler
async def invoke_dispatcher(args: InvokeDispatcher, job: wqcore.Job) -> None:
    """Makes the runs of the dispatcher for the event. Raises wqcore.Discard when either does not exist."""
    db = await store.open_store()
    for _ in range(INVOKED_MAX):
        try:
            invoked = await db.row(
                "invoke_dispatcher", dispatcher=args.id, event=args.event_record_id, run=ids.new("run")
            )
        except psycopg.errors.UniqueViolation:
            continue  # the same invocation has just made the runs: see the header of the statement
        if invoked is None:
            raise wqcore.Discard(
                f"no dispatcher {args.id}, or no event record {args.event_record_id} in its environment"
            )
        return
    raise wqcore.Retry(f"dispatcher {args.id} was invoked for event {args.event_record_id} by others all the time")


def _passes(value: Any, event_filter: Any) -> bool:
    return event_filter is None or matches(value, event_filter)
