"""Calls from the platform to an endpoint: one POST, bounded in time and size, with one meaning for each answer.

2xx → the body; 5xx, 408 and no answer (network, time-out) → `wqcore.Retry`; any other status, a body over the limit or
one that does not fit its type → `wqcore.Discard`, which names the field. Connections are reused within a worker; the
limits and the guard against private addresses are those of `handlers.outgoing`.

A worker that dies during a call leaves an endpoint that may have acted on it: the next attempt calls again, so what an
endpoint does must bear that (job ids and idempotency keys in the bodies are for this).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta

import wqcore
from handlers import outgoing

T = TypeVar("T")

PROTOCOL_VERSION: Final = "2023-09-29"
TEMPORARY: Final = frozenset({408})
"""Statuses below 500 that mean "did not answer". 429 is not one: it is the answer of a user's own code."""


class Endpoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where an endpoint is, and the key that opens it.

    Attributes:
        url (str): http or https.
        api_key (str): the environment's key, `tr_<env>_<alnum>`.
    """

    url: Annotated[str, Meta(pattern="^https?://")]
    api_key: Annotated[str, Meta(pattern="^[!-~]+$")]

    def __repr__(self) -> str:
        return f"<Endpoint {self.url}>"


class Caller:
    """Calls endpoints within the limits of `[app.http]`."""

    async def call(
        self, endpoint: Endpoint, action: str, body: bytes, answer: type[T], *, headers: Mapping[str, str] | None = None
    ) -> T:
        """Sends `body` (JSON) with the action, and reads the answer as the type `answer`.

        Raises wqcore.Retry or wqcore.Discard; see the module's docstring.
        """
        data = await self.call_raw(endpoint, action, body, headers=headers)
        try:
            return msgspec.json.decode(data, type=answer)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise wqcore.Discard(f"the answer to {action} from {endpoint.url} does not fit: {error}") from error

    async def call_raw(
        self, endpoint: Endpoint, action: str, body: bytes, *, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """Sends `body` with the action and returns the answer's body. Raises wqcore.Retry or wqcore.Discard."""
        request = {
            "accept": "application/json",
            "content-type": "application/json",
            "x-trigger-api-key": endpoint.api_key,
            "x-trigger-action": action,
            "x-trigger-version": PROTOCOL_VERSION,
        } | dict(headers or {})
        where = f"{action} at {endpoint.url}"
        answer = await outgoing.request("POST", endpoint.url, what=where, headers=request, body=body)
        if not answer.ok:
            raise outgoing.refusal(answer, where, temporary=TEMPORARY)
        return answer.body


@wqcore.resource
async def caller() -> AsyncIterator[Caller]:
    """The worker's caller. Raises ConfigError when `[app.http]` does not fit."""
    outgoing.settings()
    yield Caller()
