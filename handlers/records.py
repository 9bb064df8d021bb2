"""What people and programs ask of the platform's records, whichever door they come through: HTTP or the command line.

Every statement is told the environment that the caller's key opens, so that nobody sees another's.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

import wqcore
from handlers import calls, endpoints, ids, secrets, store

TASKS_MAX: Final = 1000
"""Of one run, shown at once."""


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


async def add_endpoint(db: store.Store, of: Environment, url: str, slug: str) -> store.Row:
    """Stores the endpoint, new or moved to this URL, once it has answered a PING; its indexEndpoint is part of that.

    Raises wqcore.Discard or wqcore.Retry with the reason when it does not answer as the endpoint `slug`.
    """
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


def redacted(task: store.Row, field: str) -> Any:
    """`params` or `output` of a task as people may see it: what its `redact` names is hidden."""
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


def tree(tasks: list[dict[str, Any]], parents: list[str | None]) -> list[dict[str, Any]]:
    """Tasks with their `subtasks`, by the id of each one's parent; one whose parent is not among them stands at the top."""
    by_id = {task["id"]: task for task in tasks}
    top = []
    for task, parent in zip(tasks, parents, strict=True):
        if parent in by_id:
            by_id[parent].setdefault("subtasks", []).append(task)
        else:
            top.append(task)
    return top
