"""A request that a service sent to a source, on its way to the endpoint and back as events.

Pure: from the row of delivery_to_make.sql to headers, and from the endpoint's answer to events. An event that has no id gets the
request's id and its place in the answer, so that the same answer makes the same events.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import msgspec

import wqcore
from handlers import declared, secrets, store
from handlers.ingest import Event, RawEvent


class Handled(declared.Declared, frozen=True):
    """The answer to DELIVER_HTTP_SOURCE_REQUEST; `metadata` is kept and sent along with the source's next request."""

    events: list[RawEvent]
    metadata: Any = msgspec.UNSET


def headers(delivery: store.Row) -> dict[str, str]:
    """What goes beside the body. Raises wqcore.Discard when a value cannot be sent in a header."""
    found = {
        "content-type": "application/octet-stream",
        "x-ts-key": delivery.key,
        "x-ts-secret": "" if delivery.secret_sealed is None else secrets.unseal(delivery.secret_sealed),
        "x-ts-params": json.dumps(delivery.params),
        "x-ts-data": json.dumps({} if delivery.channel_data is None else delivery.channel_data),
        "x-ts-http-url": quote(delivery.url, safe="%/:=&?~#+!$,;'@()*[]"),
        "x-ts-http-method": delivery.method,
        "x-ts-http-headers": json.dumps(delivery.headers),
    }
    if delivery.dynamic_trigger_slug is not None:
        found["x-ts-dynamic-id"] = delivery.dynamic_trigger_slug
    if delivery.metadata is not None:
        found["x-ts-metadata"] = json.dumps(delivery.metadata)
    if delivery.access_token_sealed is not None:
        found["x-ts-auth"] = json.dumps(_auth(delivery))
    for name, value in found.items():
        if not (value.isascii() and value.isprintable()):
            raise wqcore.Discard(f"request {delivery.id}: {name} has characters that a header cannot hold")
    return found


def events(delivery: store.Row, answer: Handled) -> list[Event]:
    """The events of the answer; runs of a dynamic trigger see which registration they came by."""
    context = None if delivery.registration_key is None else {"id": delivery.registration_key, "metadata": None}
    return [
        raw.event(f"{delivery.id}:{n}", account_id=delivery.account_id, source_context=context)
        for n, raw in enumerate(answer.events)
    ]


def _auth(delivery: store.Row) -> dict[str, Any]:
    # A connection that cannot be refreshed by OAuth holds a key of the service.
    kind = "apiKey" if delivery.token_url is None else "oauth2"
    return {"type": kind, "accessToken": secrets.unseal(delivery.access_token_sealed), "scopes": delivery.scopes}
