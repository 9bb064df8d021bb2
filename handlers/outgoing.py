"""Outgoing HTTP: every request is bounded in time and size, reaches public addresses only, and reuses connections.

`request` sends one and returns the answer, whatever its status; no answer (network, time-out) → `wqcore.Retry`; a request
that cannot be made, that the guard refuses, or an answer over the limit → `wqcore.Discard`. `refusal` turns a status that
is not wanted into one of these. `session` is what they share, for callers that need more.

The guard stands where a socket is made, so it judges the very address that is connected to: a name that resolves
differently at the second look (DNS rebinding), a redirect and an address in an odd notation all come by there.

A worker that dies during a request leaves a service that may have acted on it: the next attempt sends it again.
"""

from __future__ import annotations

import datetime as dt
import email.utils
import ipaddress
import socket
from collections.abc import AsyncIterator, Mapping, Set
from typing import Annotated, Final

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver, ResolveResult
from msgspec import Meta

import wqcore

Seconds = Annotated[float, Meta(gt=0, le=3600)]

REFUSAL_BYTES_READ: Final = 16_384
"""How much is read of an answer that is not a success: enough for any error document of an API."""
REFUSAL_CHARS_SHOWN: Final = 300
"""How much of it goes into the reason of the failure."""
IDLE_CONNECTION_S: Final = 4.0
"""Below the 5 s after which Node.js closes an idle connection (`server.keepAliveTimeout`): a request that meets the closing
would fail, and a POST may not be repeated by the client."""
RETRY_AFTER_MAX_S: Final = 86_400.0
TEMPORARY: Final = frozenset({408, 429})
"""Statuses below 500 after which the same request may succeed later."""
FRAMING: Final = frozenset((
    "accept-encoding", "connection", "content-length", "expect", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade",
))  # fmt: skip
"""Headers that say how a message travels. The client makes them: what a user puts there would break the framing of the next
request on the connection, or get an answer that cannot be read."""

_PUBLIC_6: Final = ipaddress.IPv6Network("2000::/3")
# Of the IANA registries of special-purpose addresses, what is not for calls to other hosts on the Internet. IPv6 is public
# only within 2000::/3, so IPv4-mapped (::ffff:0:0/96), NAT64 (64:ff9b::/96), local and multicast addresses are out as well.
_SPECIAL: Final = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4",
        "2001::/23",  # Teredo, ORCHID and others
        "2001:db8::/32", "3fff::/20",  # documentation
        "2002::/16",  # 6to4: an IPv4 address in disguise
    )
)  # fmt: skip


class Http(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The settings `[app.http]`: limits of every request to endpoints and services.

    Attributes:
        connect_timeout_s (float): for each address that is tried, with TLS; default 5: a host that is up answers sooner.
        total_timeout_s (float): from resolving the name to the last byte of the answer; default 60.
        connections_max (int): of one worker process, to all hosts; default 100.
        response_bytes_max (int): a larger answer is refused; default 8 MiB.
        redirects_max (int): how many are followed where they are followed at all; default 5.
        allow_private_addresses (bool): whether loopback, private, link-local and other addresses that are not public may be
            called; default false, because users choose the URLs, and their requests would reach what only this host may
            reach (a cloud's metadata at 169.254.169.254). True for development.
        proxy (str | None): URL of a proxy for all requests; default none. The guard cannot see what a proxy connects to, so
            with a proxy that is the proxy's duty. The environment's proxy variables are not read.
    """

    connect_timeout_s: Seconds = 5.0
    total_timeout_s: Seconds = 60.0
    connections_max: Annotated[int, Meta(ge=1, le=10_000)] = 100
    response_bytes_max: Annotated[int, Meta(ge=1024, le=1 << 30)] = 8 << 20
    redirects_max: Annotated[int, Meta(ge=1, le=20)] = 5
    allow_private_addresses: bool = False
    proxy: Annotated[str, Meta(pattern="^https?://")] | None = None

    def __repr__(self) -> str:  # the URL of a proxy may hold its password
        return "<Http>"


settings = wqcore.settings_for("http", Http)


class Answer(msgspec.Struct, frozen=True):
    """What a service answered.

    Attributes:
        status (int): of the last answer, when redirects were followed.
        headers (mapping): names in any case.
        body (bytes): complete for a 2xx, else the first `REFUSAL_BYTES_READ`.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def ok(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300

    def beginning(self) -> str:
        """The first characters of the body, on one line, for a reason."""
        return " ".join(self.body.decode("utf-8", "replace").split())[:REFUSAL_CHARS_SHOWN]


@wqcore.resource
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """The worker's HTTP client, with the limits of `[app.http]` and the guard; give `allow_redirects=False` to a request.

    It keeps no cookies, and asks for answers that are not compressed: the limit on them counts bytes as received.
    Raises ConfigError when `[app.http]` does not fit.
    """
    limits = settings()
    guarded = not limits.allow_private_addresses and limits.proxy is None
    connector = aiohttp.TCPConnector(
        limit=limits.connections_max,
        keepalive_timeout=IDLE_CONNECTION_S,
        resolver=PublicResolver() if guarded else aiohttp.ThreadedResolver(),
        socket_factory=public_socket if guarded else None,
    )
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=limits.total_timeout_s, sock_connect=limits.connect_timeout_s),
        headers={"user-agent": "wqcore", "accept-encoding": "identity"},
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        proxy=limits.proxy,
        # The environment must not decide whom we talk to: a .netrc would send its passwords to users' endpoints.
        trust_env=False,
    ) as client:
        yield client


async def request(
    method: str,
    url: str,
    *,
    what: str,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    follow_redirects: bool = False,
) -> Answer:
    """Sends one request; the answer, whatever its status.

    `what` names the request in the reasons of failures ("INDEX_ENDPOINT at https://…"). `FRAMING` headers are left out.
    Raises wqcore.Retry or wqcore.Discard; see the module's docstring.
    """
    client, limits = await session(), settings()
    try:
        async with client.request(
            method,
            url,
            data=body,
            headers={name: value for name, value in (headers or {}).items() if name.lower() not in FRAMING},
            allow_redirects=follow_redirects,
            max_redirects=limits.redirects_max + 1,  # aiohttp counts the answer at which it gives up
        ) as response:
            is_success = 200 <= response.status < 300
            data = await (read_limited(response) if is_success else _beginning(response))
            return Answer(response.status, response.headers, data)
    except aiohttp.ConnectionTimeoutError as error:
        raise wqcore.Retry(f"{what}: no connection within {limits.connect_timeout_s:g} s") from error
    except TimeoutError as error:
        raise wqcore.Retry(f"{what}: no full answer within {limits.total_timeout_s:g} s") from error
    except aiohttp.TooManyRedirects as error:
        raise wqcore.Discard(f"{what}: more than app.http.redirects_max = {limits.redirects_max} redirects") from error
    except (aiohttp.NonHttpUrlClientError, ValueError) as error:  # InvalidURL is a ValueError, and so is a bad header
        raise wqcore.Discard(f"{what}: {type(error).__name__}: {error}") from error
    except aiohttp.ClientConnectorError as error:
        raise wqcore.Retry(f"{what}: ConnectError: {error}") from error
    except aiohttp.ClientError as error:
        raise wqcore.Retry(f"{what}: {type(error).__name__}: {error}") from error


async def read_limited(response: aiohttp.ClientResponse) -> bytes:
    """The whole body. Raises wqcore.Discard when it is larger than the limit or compressed, and aiohttp's errors."""
    encoding = response.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise wqcore.Discard(f"{_source(response)}: the answer is encoded as {encoding!r}, which was not asked for")
    bytes_max, data = settings().response_bytes_max, bytearray()
    async for chunk in response.content.iter_any():
        data += chunk
        if len(data) > bytes_max:
            raise wqcore.Discard(
                f"{_source(response)}: the answer is larger than app.http.response_bytes_max = {bytes_max}"
            )
    return bytes(data)


def refusal(answer: Answer, what: str, *, temporary: Set[int] = TEMPORARY) -> wqcore.Outcome:
    """The outcome to raise for an answer that is not a success: Retry for 5xx and `temporary`, else Discard.

    The next attempt waits as long as the answer's `retry-after` says.
    """
    text = answer.beginning()
    reason = f"{what} answered {answer.status}: {text}" if text else f"{what} answered {answer.status}"
    if answer.status >= 500 or answer.status in temporary:
        return wqcore.Retry(reason, after=retry_after_s(answer.headers))
    return wqcore.Discard(reason)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """What the header `retry-after` asks for (RFC 9110 §10.2.3: seconds or a date), at most a day; None without one."""
    value = headers.get("retry-after", "")
    if value.isascii() and value.isdigit():
        wait_s = float(value)
    else:
        try:
            at = email.utils.parsedate_to_datetime(value)
        except ValueError:
            return None
        at = at if at.tzinfo else at.replace(tzinfo=dt.UTC)
        wait_s = (at - dt.datetime.now(dt.UTC)).total_seconds()
    return min(max(wait_s, 0.0), RETRY_AFTER_MAX_S)


def is_public(address: str) -> bool:
    """Whether an address in its usual notation is of a host on the Internet; anything else is not."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if ip.version == 6 and (ip not in _PUBLIC_6 or "%" in address):
        return False
    return not any(ip in network for network in _SPECIAL)


def public_socket(target: aiohttp.AddrInfoType) -> socket.socket:
    """A socket for a connection to `target`, if it is public. Raises wqcore.Discard."""
    family, kind, protocol, _, address = target
    if not is_public(str(address[0])):
        raise _private(str(address[0]), str(address[0]))
    return socket.socket(family, kind, protocol)


class PublicResolver(AbstractResolver):
    """Leaves only public addresses of a name.

    `public_socket` would refuse the others too, but where several addresses are tried, aiohttp treats what it raises as
    one more address that is not reachable, and the host would be tried again.
    """

    def __init__(self) -> None:
        self._resolver = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The public addresses. Raises wqcore.Discard when there are only others, OSError when there are none."""
        found = await self._resolver.resolve(host, port, family)
        public = [result for result in found if is_public(result["host"])]
        if found and not public:
            raise _private(host, found[0]["host"])
        return public

    async def close(self) -> None:
        """Nothing is kept."""
        await self._resolver.close()


def _private(host: str, address: str) -> wqcore.Discard:
    of_name = f" ({address})" if address != host else ""
    return wqcore.Discard(
        f"the host {host}{of_name} is not on the public Internet, so it is not called; for development set "
        "app.http.allow_private_addresses = true"
    )


async def _beginning(response: aiohttp.ClientResponse) -> bytes:
    """The first bytes of a body that is only shown; the connection is given up if there are more."""
    data = bytearray()
    async for chunk in response.content.iter_any():
        data += chunk
        if len(data) > REFUSAL_BYTES_READ:
            response.close()
            break
    return bytes(data[:REFUSAL_BYTES_READ])


def _source(response: aiohttp.ClientResponse) -> str:
    return f"{response.method} {response.url.with_query(None)}"
