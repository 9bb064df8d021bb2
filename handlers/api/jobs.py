"""A job, whatever its trigger, can be invoked: once for each Idempotency-Key it makes an event and a run of its own.

Event, run and startRun are one transaction. A repetition waits for the first one at the event's unique index, and then finds
its run.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from handlers import ids, records, store
from handlers.api.bodies import Refused, not_found, read, reply
from handlers.api.runs import cancel_all, page, run_row
from handlers.ingest import Event, ingest

INVOKE_EVENT: Final = "invoke"
"""As the SDK's invokeTrigger names it."""
KEY_CHARS_MAX: Final = 256


class Options(msgspec.Struct, frozen=True, rename="camel"):
    """For whom it runs; a callback is not supported."""

    account_id: Annotated[str, Meta(max_length=512)] | None = None
    callback_url: str | None = None


class Invoke(msgspec.Struct, frozen=True):
    """What the run gets."""

    payload: Any = None
    context: Any = None
    options: Options | None = None


async def runs(request: Request, environment: records.Environment) -> Response:
    """GET /api/v1/jobs/:job/runs?take&cursor: the newest first."""
    take, cursor = page(request)
    db = await store.open_store()
    async with db.connection() as one:
        await _job(one, request, environment)
        rows = await one.rows("api_job_runs", **_names(request, environment), cursor=cursor, take=take + 1)
    more = {"nextCursor": rows[take].id} if len(rows) > take else {}
    return reply({"runs": [run_row(row) for row in rows[:take]]} | more)


async def cancel_runs(request: Request, environment: records.Environment) -> Response:
    """POST /api/v1/jobs/:job/cancel-runs"""
    db = await store.open_store()
    async with db.connection() as one:
        await _job(one, request, environment)
        rows = await one.rows("api_open_runs", **_names(request, environment))
        return reply(await cancel_all(one, [row.id for row in rows]))


async def invoke(request: Request, environment: records.Environment) -> Response:
    """POST /api/v1/jobs/:job/invoke"""
    body, key = await read(request, Invoke), request.headers.get("idempotency-key")
    options = body.options or Options()
    if options.callback_url is not None:
        raise Refused(422, "callbacks are not supported", field="options.callbackUrl")
    if key is not None and len(key) > KEY_CHARS_MAX:
        raise Refused(422, f"an Idempotency-Key has at most {KEY_CHARS_MAX} characters", field="idempotencyKey")
    db = await store.open_store()
    async with db.transaction() as tx:
        job = await _job(tx, request, environment)
        event = Event(
            id=f"{job.id}:{key or ids.new('invoke')}",
            name=INVOKE_EVENT,
            payload=body.payload,
            context=body.context,
            account_id=options.account_id,
        )
        [record] = await ingest(tx, environment.id, [event], deliver=False)
        run = await tx.row(
            "api_invoke_job", job=job.id, environment=environment.id, event=record.id, run=ids.new("run")
        )
        if run is None:
            raise Refused(409, "the job has no version that is enabled in this environment")
    return reply({"id": run.id})


async def _job(on: store.Transaction, request: Request, environment: records.Environment) -> store.Row:
    row = await on.row("api_job", **_names(request, environment))
    if row is None:
        raise not_found("job")
    return row


def _names(request: Request, environment: records.Environment) -> dict[str, str]:
    return {"project": environment.project_id, "environment": environment.id, "job": request.path_params["job"]}
