"""Registrations of dynamic schedules: registering again changes the one that is there, in one transaction."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from handlers import records, schedules, store
from handlers.api.bodies import not_found, read, reply, valid


async def register(request: Request, environment: records.Environment) -> Response:
    """POST /api/v1/:client/schedules/:trigger/registrations"""
    body = await read(request, dict[str, Any])
    path = request.path_params
    with valid():
        async with (await store.open_store()).transaction() as tx:
            done = await schedules.register(tx, environment.id, path["client"], path["trigger"], body)
    if done is None:
        raise not_found("dynamic schedule")
    return reply(done)


async def unregister(request: Request, environment: records.Environment) -> Response:
    """DELETE /api/v1/:client/schedules/:trigger/registrations/:key"""
    path = request.path_params
    async with (await store.open_store()).transaction() as tx:
        done = await schedules.unregister(tx, environment.id, path["client"], path["trigger"], path["key"])
    if not done:
        raise not_found("registration")
    return reply({"ok": True})
