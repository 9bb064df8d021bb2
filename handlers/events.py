"""An event that was received reaches every dispatcher whose filters match, once, and each dispatcher makes its runs once.

deliverEvent reads who listens, asks the filters, and writes in one statement `delivered_at` and an events.invokeDispatcher
for each match; that makes the runs and their startRun in one statement. A crash before either leaves the event as it was,
after it the repetition finds what was done.

Both take the jobs that are there together: the runs of a job are numbered by one row, and with a statement for each of them
they waited in line for its lock: 63 runs a second, and 201 in batches, on 2 cores that also ran PostgreSQL.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import psycopg

import wqcore
from handlers import ids, store
from handlers.matcher import matches

DELIVERED_TOGETHER_MAX: Final = 8
"""As many as the queue has workers."""
INVOKED_TOGETHER_MAX: Final = 20
BATCH_WAIT_S: Final = 0.005
INVOKED_MAX: Final = 10
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


@wqcore.handler(max_batch=DELIVERED_TOGETHER_MAX, max_wait_s=BATCH_WAIT_S)
async def deliver_events(items: list[wqcore.BatchItem[DeliverEvent]]) -> list[Exception | None]:
    """Invokes the dispatchers whose filters match. An event that does not exist is wqcore.Discard."""
    db = await store.open_store()
    async with db.connection() as one:
        found = await one.rows("event_candidates", events=[item.args.id for item in items])
        delivered = [event for event in found if event.is_open]  # else delivered before, or cancelled
        pairs = [(event.id, dispatcher) for event in delivered for dispatcher in _listening(event)]
        if delivered:
            await one.row(
                "deliver_events",
                events=[event.id for event in delivered],
                pair_events=[event for event, _ in pairs],
                pair_dispatchers=[dispatcher for _, dispatcher in pairs],
            )
    known = {event.id for event in found}
    return [None if item.args.id in known else wqcore.Discard(f"no event record {item.args.id}") for item in items]


@wqcore.handler(max_batch=INVOKED_TOGETHER_MAX, max_wait_s=BATCH_WAIT_S)
async def invoke_dispatchers(items: list[wqcore.BatchItem[InvokeDispatcher]]) -> list[Exception | None]:
    """Makes the runs of the dispatchers for their events. wqcore.Discard where either does not exist."""
    db = await store.open_store()
    for _ in range(INVOKED_MAX):
        try:
            invoked = await db.rows(
                "invoke_dispatchers",
                dispatchers=[item.args.id for item in items],
                events=[item.args.event_record_id for item in items],
                runs=[ids.new("run") for _ in items],
            )
        except psycopg.errors.UniqueViolation:
            continue  # one of these invocations has just made its runs elsewhere: see the header of the statement
        known = {row.n for row in invoked}
        return [None if n in known else _unknown(item.args) for n, item in enumerate(items, 1)]
    raise wqcore.Retry("these dispatchers were invoked for these events by others all the time")


def _listening(event: store.Row) -> list[str]:
    """The dispatchers whose filters the event passes."""
    return [
        dispatcher
        for dispatcher, payload_filter, context_filter in event.dispatchers
        if _passes(event.payload, payload_filter) and _passes(event.context, context_filter)
    ]


def _unknown(args: InvokeDispatcher) -> wqcore.Discard:
    return wqcore.Discard(f"no dispatcher {args.id}, or no event record {args.event_record_id} in its environment")


def _passes(value: Any, event_filter: Any) -> bool:
    return event_filter is None or matches(value, event_filter)
