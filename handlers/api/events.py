"""Events come in once for each id, alone or many in one transaction; an event can be cancelled until it is delivered."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from handlers import ids, records, store
from handlers.api.bodies import not_found, read, reply
from handlers.api.runs import cancel_all
from handlers.ingest import Name, RawEvent, ingest
from handlers.protocol import Instant

EVENTS_MAX: Final = 1000
Seconds = Annotated[int, Meta(ge=0, le=10 * 366 * 86_400)]


class Options(msgspec.Struct, frozen=True, rename="camel"):
    """When it shall be delivered, and for whom."""

    deliver_at: Instant | None = None
    deliver_after: Seconds | None = None
    account_id: Name | None = None


class SendEvent(msgspec.Struct, frozen=True):
    """One event."""

    event: RawEvent
    options: Options | None = None


class SendEvents(msgspec.Struct, frozen=True):
    """Many events."""

    events: Annotated[list[RawEvent], Meta(max_length=EVENTS_MAX)]
    options: Options | None = None


async def send(request: Request, environment: records.Environment) -> Response:
    """POST /api/v1/events"""
    body = await read(request, SendEvent)
    [record] = await _ingest(environment, [body.event], body.options)
    return reply(event_log(record))


async def send_many(request: Request, environment: records.Environment) -> Response:
    """POST /api/v1/events/bulk"""
    body = await read(request, SendEvents)
    return reply([event_log(record) for record in await _ingest(environment, body.events, body.options)])


async def cancel(request: Request, environment: records.Environment) -> Response:
    """POST /api/v1/events/:event/cancel: changes nothing when it was delivered or cancelled already."""
    db = await store.open_store()
    row = await db.row("api_cancel_event", event=request.path_params["event"], environment=environment.id)
    if row is None:
        raise not_found("event")
    return reply(event_log(row))


async def cancel_runs(request: Request, environment: records.Environment) -> Response:
    """POST /api/v1/events/:event/cancel-runs"""
    db = await store.open_store()
    async with db.connection() as one:
        rows = await one.rows("api_event", event=request.path_params["event"], environment=environment.id)
        if not rows:
            raise not_found("event")
        return reply(await cancel_all(one, [row.id for row in rows if row.id and row.completed_at is None]))


async def show(request: Request, environment: records.Environment) -> Response:
    """GET /api/v2/events/:event"""
    db = await store.open_store()
    rows = await db.rows("api_event", event=request.path_params["event"], environment=environment.id)
    if not rows:
        raise not_found("event")
    event = rows[0]
    return reply(
        {
            "id": event.event_id,
            "name": event.name,
            "createdAt": event.created_at,
            "updatedAt": event.updated_at,
            "runs": [
                {"id": row.id, "status": row.status, "startedAt": row.started_at, "completedAt": row.completed_at}
                for row in rows
                if row.id is not None
            ],
        }
    )


async def _ingest(environment: records.Environment, events: list[RawEvent], options: Options | None) -> list[store.Row]:
    options = options or Options()
    deliver_at = options.deliver_at
    if deliver_at is None and options.deliver_after:
        deliver_at = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=options.deliver_after)
    return await ingest(
        await store.open_store(),
        environment.id,
        [
            event.event(ids.new("event"), account_id=options.account_id, deliver_at=deliver_at) for event in events
        ],
    )


def event_log(record: store.Row) -> dict[str, Any]:
    """An event as the SDK reads it (its ApiEventLog); deliverAt is there when it was to be later."""
    return {
        "id": record.event_id,
        "name": record.name,
        "payload": record.payload,
        "context": record.context,
        "timestamp": record.timestamp,
        "deliverAt": record.deliver_at if record.deliver_at > record.created_at else None,
        "deliveredAt": record.delivered_at,
        "cancelledAt": record.cancelled_at,
    }
