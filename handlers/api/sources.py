"""Sources of external events: what their registration came to, and the requests that outside services deliver.

A delivery is stored with the job that hands it on before it is answered, so what was answered with 200 is not lost; a service
that repeats it makes a second delivery, whose events have the ids that the endpoint's code gives them.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from handlers import platform, records, sources, store
from handlers.api.bodies import Refused, not_found, read, read_bytes, reply, valid


async def update(request: Request, environment: records.Environment) -> Response:
    """PUT /api/v2/:client/sources/:key"""
    body = await read(request, dict[str, Any])
    db = await store.open_store()
    with valid():
        done = await sources.update_source(db, environment.id, request.path_params["client"], key_of(request), body)
    if done is None:
        raise not_found("source")
    return reply(done)


async def register_dynamic(request: Request, environment: records.Environment) -> Response:
    """PUT /api/v2/:client/triggers/:trigger/registrations/:key"""
    body = await read(request, dict[str, Any])
    db = await store.open_store()
    with valid():
        async with db.transaction() as tx:
            done = await sources.register_dynamic(
                tx,
                environment.id,
                request.path_params["client"],
                request.path_params["trigger"],
                key_of(request),
                body,
                idempotency_key=request.headers.get("idempotency-key"),
            )
    if done is None:
        raise not_found("dynamic trigger")
    return reply(done)


async def accept(request: Request) -> Response:
    """Any method at /api/v1/sources/http/:source"""
    body = await read_bytes(request)
    query = f"?{request.url.query}" if request.url.query else ""
    url = f"{platform.settings().public_url}{request.url.path}{query}"
    delivery = await sources.accept_delivery(
        await store.open_store(), request.path_params["source"], request.method, url, headers_of(request), body
    )
    if delivery is None:
        raise Refused(404, "there is no such source, or it takes no deliveries")
    return reply({"ok": True})


def headers_of(request: Request) -> dict[str, str]:
    """The request's headers; those of the same name as one, with commas (RFC 9110 §5.3)."""
    joined: dict[str, str] = {}
    for name, value in request.headers.items():
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined


def key_of(request: Request) -> str:
    """A key that the SDK put into the path as it is: what follows a `?` in it came as a query."""
    key = str(request.path_params["key"])
    return f"{key}?{request.url.query}" if request.url.query else key
