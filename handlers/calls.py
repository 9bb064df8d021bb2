"""Calls from the platform to an endpoint: one POST, bounded in time and size, with one meaning for each answer.

2xx → the body; 5xx, 408 and no answer (network, time-out) → `wqcore.Retry`; any other status, a body over the limit or
one that does not fit its type → `wqcore.Discard`, which names the field. Connections are reused within a worker.

A worker that dies during a call leaves an endpoint that may have acted on it: the next attempt calls again, so what an
endpoint does must bear that (job ids and idempotency keys in the bodies are for this).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Final, TypeVar

import httpx
import msgspec
from msgspec import Meta

import wqcore

T = TypeVar("T")
Seconds = Annotated[float, Meta(gt=0, le=3600)]

PROTOCOL_VERSION: Final = "2023-09-29"
ANSWER_CHARS_SHOWN: Final = 300
"""How much of a refusing endpoint's body goes into the reason of the failure."""
ANSWER_BYTES_READ: Final = 2_000


class Http(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The settings `[app.http]`: limits of a call to an endpoint.

    Attributes:
        connect_timeout_s (float): default 5.
        total_timeout_s (float): from connecting to the last byte of the answer; default 60.
        connections_max (int): of one worker process, to all endpoints; default 100.
        response_bytes_max (int): a larger answer is refused; default 8 MiB.
        proxy (str | None): URL of a proxy; the environment's proxy variables are not read.
    """

    connect_timeout_s: Seconds = 5.0
    total_timeout_s: Seconds = 60.0
    connections_max: Annotated[int, Meta(ge=1, le=10_000)] = 100
    response_bytes_max: Annotated[int, Meta(ge=1024, le=1 << 30)] = 8 << 20
    proxy: str | None = None


http = wqcore.settings_for("http", Http)


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

    def __init__(self, client: httpx.AsyncClient, limits: Http) -> None:
        self._client = client
        self._limits = limits

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
            "accept-encoding": "identity",  # the limit on the answer counts bytes as received: no compressed bombs
            "content-type": "application/json",
            "x-trigger-api-key": endpoint.api_key,
            "x-trigger-action": action,
            "x-trigger-version": PROTOCOL_VERSION,
        } | dict(headers or {})
        where = f"{action} at {endpoint.url}"
        try:
            async with (
                asyncio.timeout(self._limits.total_timeout_s),
                self._client.stream("POST", endpoint.url, content=body, headers=request) as response,
            ):
                if response.is_success:
                    return await self._body(response, where)
                raise _refusal(response.status_code, await _beginning(response), where)
        except TimeoutError as error:
            raise wqcore.Retry(f"{where}: no full answer within {self._limits.total_timeout_s:g} s") from error
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise wqcore.Discard(f"{where}: {error}") from error
        except httpx.TransportError as error:
            raise wqcore.Retry(f"{where}: {type(error).__name__}: {error}") from error

    async def _body(self, response: httpx.Response, where: str) -> bytes:
        encoding = response.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise wqcore.Discard(f"{where}: the answer is encoded as {encoding!r}, which was not asked for")
        bytes_max, data = self._limits.response_bytes_max, bytearray()
        async for chunk in response.aiter_raw():
            data += chunk
            if len(data) > bytes_max:
                raise wqcore.Discard(f"{where}: the answer is larger than app.http.response_bytes_max = {bytes_max}")
        return bytes(data)


async def _beginning(response: httpx.Response) -> str:
    """The first characters of a body that is not needed."""
    data = bytearray()
    async for chunk in response.aiter_raw():
        data += chunk
        if len(data) >= ANSWER_BYTES_READ:
            break
    return " ".join(data.decode("utf-8", "replace").split())[:ANSWER_CHARS_SHOWN]


def _refusal(status: int, text: str, where: str) -> wqcore.Outcome:
    reason = f"{where} answered {status}: {text}" if text else f"{where} answered {status}"
    if status >= 500 or status == httpx.codes.REQUEST_TIMEOUT:
        return wqcore.Retry(reason)
    return wqcore.Discard(reason)


@wqcore.resource
async def caller() -> AsyncIterator[Caller]:
    """The worker's HTTP client. Raises ConfigError when `[app.http]` does not fit."""
    limits = http()
    async with httpx.AsyncClient(
        timeout=httpx.Timeout(limits.total_timeout_s, connect=limits.connect_timeout_s),
        limits=httpx.Limits(max_connections=limits.connections_max, max_keepalive_connections=limits.connections_max),
        proxy=limits.proxy,
        # The environment must not decide whom we talk to: a .netrc would send its passwords to users' endpoints.
        trust_env=False,
        follow_redirects=False,
    ) as client:
        yield Caller(client, limits)
