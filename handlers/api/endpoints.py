"""An endpoint is stored when it has answered, and indexed after that; registering it again changes its URL."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

import wqcore
from handlers import records, store
from handlers.api.bodies import Refused, read, reply


class AddEndpoint(msgspec.Struct, frozen=True):
    """Where it is, and what it calls itself: `id`; the SDK's own client sends that as `name`."""

    url: Annotated[str, Meta(pattern="^https?://", max_length=2000)]
    id: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    name: Annotated[str, Meta(min_length=1, max_length=200)] | None = None


async def add(request: Request, environment: records.Environment) -> Response:
    """POST /api/v1/endpoints"""
    body = await read(request, AddEndpoint)
    slug = body.id or body.name
    if slug is None:
        raise Refused(422, "say the endpoint's id", field="id")
    if not (slug.isascii() and slug.isprintable()):
        raise Refused(422, "an endpoint's id goes into a header: use printable ASCII", field="id")
    try:
        row = await records.add_endpoint(await store.open_store(), environment, body.url, slug)
    except (wqcore.Discard, wqcore.Retry) as error:
        raise Refused(422, str(error), field="url") from error
    return reply({"id": row.id, "slug": row.slug, "url": row.url, "createdAt": row.created_at})
