"""What people and programs ask of the platform's records, whichever door they come through: HTTP or the command line.

Every statement is told the environment that the caller's key opens, so that nobody sees another's; an operator, who has the
database, sees all.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any, Final
from uuid import uuid4

import msgspec

import wqcore
from handlers import calls, endpoints, ids, organizations, secrets, store

TASKS_MAX: Final = 10_000
"""Of one run, shown at once."""
RUN_STATUSES: Final = (
    "PENDING", "QUEUED", "WAITING_ON_CONNECTIONS", "PREPROCESSING", "STARTED", "SUCCESS", "FAILURE", "TIMED_OUT", "ABORTED",
    "CANCELED", "UNRESOLVED_AUTH", "INVALID_PAYLOAD",
)  # fmt: skip
TASK: Final = {
    "id": "id", "displayKey": "display_key", "status": "status", "name": "name", "icon": "icon",
    "startedAt": "started_at", "completedAt": "completed_at",
}  # fmt: skip
"""Of a task in a run's tree: its name there → its column."""


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """An environment, opened by its key."""

    id: str
    organization_id: str
    project_id: str
    slug: str
    type: str
    api_key: str

    def __repr__(self) -> str:
        return f"<Environment {self.id}>"


class Pong(msgspec.Struct, frozen=True):
    """The answer to PING."""

    ok: bool
    error: str | None = None


async def environment(on: store.Store | store.Transaction, api_key: str) -> Environment | None:
    """The environment that the key opens, or None."""
    row = await on.row("api_environment", hash=secrets.api_key_hash(api_key))
    return None if row is None else Environment(api_key=api_key, **row._asdict())


async def create_organization(db: store.Store, title: str, email: str | None) -> dict[str, Any]:
    """A new organization with what it gets; the keys of its environments are in clear, and nowhere else."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    slug = "-".join([*re.findall("[a-z0-9]+", plain)[:8], uuid4().hex[:6]])
    async with db.transaction() as tx:
        row = await tx.row("cli_insert_organization", id=ids.new("org"), title=title, slug=slug, email=email)
        assert row is not None  # noqa: S101 (an insert returns its row)
        environments = await organizations.make_defaults(tx, row.id)
        await tx.enqueue(organizations.OrganizationCreated(row.id))
    made = [{"slug": slug, "type": type_, "api_key": key} for slug, type_, key in environments]
    return {"id": row.id, "title": row.title, "slug": row.slug, "environments": made}


async def add_endpoint(db: store.Store, of: Environment, url: str, slug: str) -> store.Row:
    """Stores the endpoint, new or moved to this URL, once it has answered a PING; its indexEndpoint is part of that.

    Raises wqcore.Discard or wqcore.Retry with the reason when it does not answer as the endpoint `slug`.
    """
    if not url.startswith(("http://", "https://")):
        raise wqcore.Discard(f"{url} is no http or https URL")
    caller = await calls.caller()
    endpoint = calls.Endpoint(url=url, api_key=of.api_key)
    pong = await caller.call(endpoint, "PING", b"", Pong, headers={"x-trigger-endpoint-id": slug})
    if not pong.ok:
        raise wqcore.Discard(f"PING at {url}: {pong.error or 'the endpoint said that it is not ok'}")
    async with db.transaction() as tx:
        row = await tx.row("api_upsert_endpoint", id=ids.new("ep"), environment=of.id, slug=slug, url=url)
        assert row is not None  # noqa: S101 (an upsert returns its row)
        await tx.enqueue(endpoints.IndexEndpoint(row.id, source="API"), serial_key=f"endpoint-{row.id}")
    return row


async def run(db: store.Store, run_id: str) -> dict[str, Any] | None:
    """All of a run for an operator, or None."""
    async with db.connection() as one:
        row = await one.row("api_run", run=run_id, environment=None)
        if row is None:
            return None
        tasks = await one.rows("api_run_tasks", run=run_id, cursor=None, top=False, take=TASKS_MAX)
        executions = await one.rows("cli_executions", run=run_id)
    return {
        "id": row.id,
        "job": row.job_slug,
        "version": row.version,
        "number": row.number,
        "status": row.status,
        "event": row.event,
        "eventName": row.event_name,
        "createdAt": row.created_at,
        "startedAt": row.started_at,
        "completedAt": row.completed_at,
        "output": row.output,
        "tasks": tree(tasks, details=True),
        "executions": [
            {
                "reason": execution.reason,
                "status": execution.status,
                "retries": execution.retry_count,
                "startedAt": execution.started_at,
                "completedAt": execution.completed_at,
                "error": execution.error,
            }
            for execution in executions
        ],
    }


def tree(tasks: list[store.Row], *, details: bool) -> list[dict[str, Any]]:
    """Tasks with their `subtasks`; one whose parent is not among them stands at the top. `details` adds what they did."""
    by_id: dict[str, dict[str, Any]] = {}
    for task in tasks:
        by_id[task.id] = shown = {name: getattr(task, column) for name, column in TASK.items()}
        if details:
            shown |= {"params": _redacted(task, "params"), "output": _redacted(task, "output")}
            shown |= {"error": task.error, "attempts": task.attempts}
    top: list[dict[str, Any]] = []
    for task in tasks:
        siblings = by_id[task.parent_id].setdefault("subtasks", []) if task.parent_id in by_id else top
        siblings.append(by_id[task.id])
    return top


def _redacted(task: store.Row, field: str) -> Any:
    """`params` or `output` as people may see it: what the task's `redact` names is hidden."""
    value = getattr(task, field)
    for path in (task.redact or {}).get("paths", []):
        value = _hidden(value, path.split("."))
    return value


def _hidden(value: Any, path: list[str]) -> Any:
    if isinstance(value, list):
        return [_hidden(item, path) for item in value]
    if not isinstance(value, dict) or path[0] not in value:
        return value
    inner = "[REDACTED]" if len(path) == 1 else _hidden(value[path[0]], path[1:])
    return value | {path[0]: inner}
