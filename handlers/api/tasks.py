"""A task of a run is made once for each idempotency key and ends once, however often and by how many it is asked for.

Each request is one statement, so a crash leaves all of it or nothing; asking again finds the task as it is.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from handlers import ids, records, store
from handlers.api.bodies import Refused, not_found, parse, read, reply
from handlers.protocol import Instant

SERIALIZED_OUTPUT: Final = "2023-11-01"
"""From this `trigger-version` of a request on, `output` is JSON in a string."""
OPEN: Final = ("PENDING", "WAITING", "RUNNING")
TRIES: Final = 3
"""Each is lost only to a transaction that commits between a statement's snapshot and its write, and is seen by the next."""

Key = Annotated[str, Meta(min_length=1, max_length=512)]  # an entry of a B-tree has 2,704 bytes
Text = Annotated[str, Meta(max_length=10_000)]


class Callback(msgspec.Struct, frozen=True):
    """A task that waits for a request to a URL of its own."""

    enabled: bool = False


class Redact(msgspec.Struct, frozen=True):
    """What of params and output is not shown to people, e.g. `secret`, `headers.authorization`."""

    paths: list[str]


class RunTask(msgspec.Struct, frozen=True, rename="camel"):
    """What the SDK asks for; `retry`, `parallel` and `connectionKey` matter only to itself."""

    idempotency_key: Key | None = None
    name: Text | None = None
    display_key: Text | None = None
    icon: Text | None = None
    description: Text | None = None
    noop: bool = False
    operation: Literal["fetch", "fetch-response", "fetch-poll"] | None = None
    delay_until: Instant | None = None
    parent_id: Key | None = None
    params: Any = None
    properties: list[dict[str, Any]] | None = None
    style: dict[str, Any] | None = None
    redact: Redact | None = None
    callback: Callback | None = None


class CompleteTask(msgspec.Struct, frozen=True):
    """How a task went well."""

    output: Any = None
    properties: list[dict[str, Any]] | None = None


class FailTask(msgspec.Struct, frozen=True):
    """How it went wrong: usually {message, name?, stack?}; for the parent of a failed task what that one had as its output."""

    error: Any


async def run_task(request: Request, environment: records.Environment) -> Response:
    """POST /api/v1/runs/:run/tasks"""
    body = await read(request, RunTask)
    key = request.headers.get("idempotency-key") or body.idempotency_key
    if not key or len(key) > 512:
        raise Refused(422, "a task needs an Idempotency-Key of at most 512 characters", field="idempotencyKey")
    if body.callback is not None and body.callback.enabled:
        raise Refused(422, "tasks with a callback are not supported", field="callback.enabled")
    values = {
        "run": request.path_params["run"],
        "environment": environment.id,
        "id": ids.new("task"),
        "attempt": ids.new("att"),
        "key": key,
        "name": body.name or "Task",
        "display_key": body.display_key,
        "icon": body.icon,
        "description": body.description,
        "noop": body.noop,
        "operation": body.operation,
        "delay_until": body.delay_until,
        "parent": body.parent_id,
        "params": _stored(body.params),
        "properties": _stored(_shown(body.properties)),
        "style": _stored(body.style),
        "redact": _stored(body.redact),
    }
    db = await store.open_store()
    for _ in range(TRIES):
        task = await db.row("api_run_task", **values)
        if task is None:
            raise not_found("run")
        if task.id is not None:
            return reply(server_task(task))
        if task.run_ended:
            raise Refused(409, f"the run has ended ({task.run_status}): it takes no more tasks")
    raise Refused(503, "the task is being made by another request: try again", headers={"retry-after": "1"})


async def complete_task(request: Request, environment: records.Environment) -> Response:
    """POST /api/v1/runs/:run/tasks/:task/complete"""
    body = await read(request, CompleteTask)
    output = body.output
    if isinstance(output, str) and request.headers.get("trigger-version", "") >= SERIALIZED_OUTPUT:
        output = parse(output, Any, "output")
    return await _end(request, environment, "COMPLETED", output, properties=_stored(_shown(body.properties)))


async def fail_task(request: Request, environment: records.Environment) -> Response:
    """POST /api/v1/runs/:run/tasks/:task/fail

    The error is the task's output too: that is where the SDK looks for it when the run is executed again.
    """
    error = (await read(request, FailTask)).error
    text = error.get("message") if isinstance(error, dict) else error
    text = text if isinstance(text, str) else msgspec.json.encode(error).decode()
    return await _end(request, environment, "ERRORED", error, error=text)


async def _end(
    request: Request,
    environment: records.Environment,
    status: str,
    output: Any,
    *,
    properties: Any = None,
    error: Any = None,
) -> Response:
    values = {
        "run": request.path_params["run"],
        "task": request.path_params["task"],
        "environment": environment.id,
        "status": status,
        "output": _stored(output),
        "properties": properties,
        "error": error,
    }
    db = await store.open_store()
    for _ in range(TRIES):
        task = await db.row("api_end_task", **values)
        if task is None:
            raise not_found("task")
        if task.status not in OPEN:
            return reply(server_task(task))
    raise Refused(503, "the task is being ended by another request: try again", headers={"retry-after": "1"})


def server_task(task: store.Row) -> dict[str, Any]:
    """A task as the SDK reads it."""
    return {
        "id": task.id,
        "name": task.name,
        "displayKey": task.display_key,
        "icon": task.icon,
        "description": task.description,
        "noop": task.noop,
        "status": task.status,
        "startedAt": task.started_at,
        "completedAt": task.completed_at,
        "delayUntil": task.delay_until,
        "params": task.params,
        "properties": task.properties,
        "output": task.output,
        "outputProperties": task.output_properties,
        "context": task.context,
        "error": task.error,
        "parentId": task.parent_id,
        "style": task.style,
        "operation": task.operation,
        "idempotencyKey": task.idempotency_key,
        "attempts": task.attempts,
    }


def _stored(value: Any) -> Any:
    return None if value is None else store.json(value)


def _shown(properties: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Those that have a label and a text; the SDK's schema lets incomplete ones through, and refuses them in a reply."""
    if properties is None:
        return None
    return [shown for shown in properties if isinstance(shown.get("label"), str) and isinstance(shown.get("text"), str)]
