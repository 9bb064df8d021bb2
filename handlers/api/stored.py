"""The key-value store of an environment: text under a key, the last one written counts."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from handlers import records, store
from handlers.api.bodies import Refused, not_found, read_bytes, reply

KEY_CHARS_MAX: Final = 512


async def get(request: Request, environment: records.Environment) -> Response:
    """GET and HEAD /api/v1/store/:key"""
    key = _key(request)
    row = await (await store.open_store()).row("api_store_get", environment=environment.id, key=key)
    if row is None and request.method == "HEAD":
        raise not_found("key")
    return reply({"action": "GET", "key": key} | ({} if row is None else {"value": row.value}))


async def put(request: Request, environment: records.Environment) -> Response:
    """PUT /api/v1/store/:key"""
    key = _key(request)
    try:
        value = (await read_bytes(request)).decode()
    except UnicodeDecodeError as error:
        raise Refused(422, f"the value is not UTF-8: {error.reason}") from error
    await (await store.open_store()).row("api_store_put", environment=environment.id, key=key, value=value)
    return reply({"action": "SET", "key": key, "value": value})


async def delete(request: Request, environment: records.Environment) -> Response:
    """DELETE /api/v1/store/:key"""
    key = _key(request)
    row = await (await store.open_store()).row("api_store_delete", environment=environment.id, key=key)
    return reply({"action": "DELETE", "key": key, "deleted": row is not None})


def _key(request: Request) -> str:
    key = str(request.path_params["key"])
    if not key or len(key) > KEY_CHARS_MAX:
        raise Refused(422, f"a key has 1 to {KEY_CHARS_MAX} characters", field="key")
    return key
