"""Runs as the SDK shows them, with their tasks page by page; a run that has not ended can be canceled.

A canceled run gives its place back and its open tasks are CANCELED, all in one statement; code that runs for it at that moment
is told so by the next task that it asks for or completes.
"""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from handlers import executions, protocol, records, store
from handlers.api import statuses
from handlers.api.bodies import Refused, not_found, reply

CANCELED: Final = protocol.End(status="CANCELED")
TAKE, TAKE_MAX = 20, 50
ROW: Final = {
    "id": "id",
    "status": "status",
    "startedAt": "started_at",
    "updatedAt": "updated_at",
    "completedAt": "completed_at",
}


async def show(request: Request, environment: records.Environment) -> Response:
    """GET /api/v2/runs/:run?subtasks&taskdetails&take&cursor: without `subtasks` the tasks at the top alone."""
    subtasks, details = _flag(request, "subtasks"), _flag(request, "taskdetails")
    take, cursor = page(request)
    db = await store.open_store()
    async with db.connection() as one:
        run = await one.row("api_run", run=request.path_params["run"], environment=environment.id)
        if run is None:
            raise not_found("run")
        tasks = await one.rows("api_run_tasks", run=run.id, cursor=cursor, top=not subtasks, take=take + 1)
        stated = await one.rows("api_run_statuses", run=run.id)
    more = {"nextCursor": tasks[take].id} if len(tasks) > take else {}
    return reply(
        run_row(run)
        | {
            "output": run.output,
            "tasks": records.tree(tasks[:take], details=details),
            "statuses": [statuses.record(status) for status in stated],
        }
        | more
    )


async def cancel(request: Request, environment: records.Environment) -> Response:
    """POST /api/v1/runs/:run/cancel: changes nothing when it has ended. Replies as `show`."""
    db = await store.open_store()
    run = await db.row("api_run", run=request.path_params["run"], environment=environment.id)
    if run is None:
        raise not_found("run")
    await executions.end(db, CANCELED, run=run.id)
    return await show(request, environment)


async def cancel_all(on: store.Transaction, run_ids: list[str]) -> dict[str, list[str]]:
    """Cancels runs one by one; the reply to who asked for it. One that cannot be canceled has ended by itself."""
    ended = {run: await executions.end(on, CANCELED, run=run) for run in run_ids}
    return {
        "cancelledRunIds": [run for run, was_open in ended.items() if was_open],
        "failedToCancelRunIds": [run for run, was_open in ended.items() if not was_open],
    }


def page(request: Request) -> tuple[int, str | None]:
    """(take, cursor) of the query; the cursor is the id with which the page begins. Raises Refused."""
    given = request.query_params.get("take", str(TAKE))
    if not (given.isascii() and given.isdecimal() and len(given) < 10 and int(given) >= 1):
        raise Refused(422, "take is a number from 1", field="take")
    return min(int(given), TAKE_MAX), request.query_params.get("cursor") or None


def run_row(row: store.Row) -> dict[str, Any]:
    """A run without its tasks, as the SDK reads it."""
    return {name: getattr(row, column) for name, column in ROW.items()}


def _flag(request: Request, name: str) -> bool:
    return request.query_params.get(name, "").lower() in ("true", "1")
