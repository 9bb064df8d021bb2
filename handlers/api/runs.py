"""Runs as the SDK shows them: one with its tasks, and those of a job, page by page."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from handlers import records, store
from handlers.api import statuses
from handlers.api.bodies import Refused, not_found, reply

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
        _run(run)
        | {
            "output": run.output,
            "tasks": records.tree(tasks[:take], details=details),
            "statuses": [statuses.record(status) for status in stated],
        }
        | more
    )


async def of_job(request: Request, environment: records.Environment) -> Response:
    """GET /api/v1/jobs/:job/runs?take&cursor: the newest first."""
    take, cursor = page(request)
    db = await store.open_store()
    values = {"project": environment.project_id, "environment": environment.id, "job": request.path_params["job"]}
    async with db.connection() as one:
        if await one.row("api_job", **values) is None:
            raise not_found("job")
        runs = await one.rows("api_job_runs", **values, cursor=cursor, take=take + 1)
    more = {"nextCursor": runs[take].id} if len(runs) > take else {}
    return reply({"runs": [_run(run) for run in runs[:take]]} | more)


def page(request: Request) -> tuple[int, str | None]:
    """(take, cursor) of the query; the cursor is the id with which the page begins. Raises Refused."""
    given = request.query_params.get("take", str(TAKE))
    if not (given.isascii() and given.isdecimal() and len(given) < 10 and int(given) >= 1):
        raise Refused(422, "take is a number from 1", field="take")
    return min(int(given), TAKE_MAX), request.query_params.get("cursor") or None


def _run(row: store.Row) -> dict[str, Any]:
    return {name: getattr(row, column) for name, column in ROW.items()}


def _flag(request: Request, name: str) -> bool:
    return request.query_params.get(name, "").lower() in ("true", "1")
