"""What a run says of itself, under keys that it chooses: the newest word, and those before it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from handlers import records, store
from handlers.api.bodies import Refused, not_found, read, reply

KEY_CHARS_MAX = 512
Label = Annotated[str, Meta(max_length=1000)]


class UpdateStatus(msgspec.Struct, frozen=True):
    """A new word; what is left out stays."""

    label: Label | None = None
    state: Literal["loading", "success", "failure"] | None = None
    data: dict[str, Any] | None = None


async def update(request: Request, environment: records.Environment) -> Response:
    """PUT /api/v1/runs/:run/statuses/:key"""
    body, key = await read(request, UpdateStatus), request.path_params["key"]
    if len(key) > KEY_CHARS_MAX:
        raise Refused(422, f"a status has a key of at most {KEY_CHARS_MAX} characters", field="key")
    db = await store.open_store()
    row = await db.row(
        "api_update_status",
        run=request.path_params["run"],
        environment=environment.id,
        key=key,
        label=body.label,
        state=body.state,
        data=None if body.data is None else store.json(body.data),
    )
    if row is None:
        raise not_found("run")
    return reply(record(row))


async def show(request: Request, environment: records.Environment) -> Response:
    """GET /api/v2/runs/:run/statuses"""
    db = await store.open_store()
    async with db.connection() as one:
        run = await one.row("api_run", run=request.path_params["run"], environment=environment.id)
        if run is None:
            raise not_found("run")
        stated = await one.rows("api_run_statuses", run=run.id)
    return reply(
        {
            "run": {"id": run.id, "status": run.status, "output": run.output},
            "statuses": [record(row) for row in stated],
        }
    )


def record(row: store.Row) -> dict[str, Any]:
    """A status as the SDK reads it: state and data are absent, not null."""
    told = {"key": row.key, "label": row.label, "state": row.state, "data": row.data, "history": row.history}
    return {name: value for name, value in told.items() if value is not None}
