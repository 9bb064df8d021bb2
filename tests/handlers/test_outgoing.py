"""Outgoing requests: what the guard refuses, and what becomes of each kind of answer, against real sockets."""

from __future__ import annotations

import asyncio
import gzip
import ipaddress
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

import wqcore
from handlers import outgoing
from tests.fix_endpoint import Answer, EndpointServer, endpoint
from tests.fix_job import app

__all__ = ["app", "endpoint"]

GUARDED = {"allow_private_addresses": False}


async def get(url: str, **options: Any) -> outgoing.Answer:
    return await outgoing.request("GET", url, what="the request", **options)


@pytest_asyncio.fixture
async def everywhere() -> AsyncIterator[EndpointServer]:
    """An endpoint on all addresses of this host, so that only the guard can keep a request from it."""
    server = EndpointServer()
    listening = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    server.port = listening.getsockname()[1]
    serving = await asyncio.start_server(server._connected, sock=listening)
    yield server
    serving.close()
    await server.stop()


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.169.254",
        "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.51.100.1",
        "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
        "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "64:ff9b::a9fe:a9fe", "64:ff9b::8.8.8.8",
        "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254",
        "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "2606:4700::1%eth0",
        "", "localhost", "example.com", "127.1", "2130706433", "0177.0.0.1", "0x7f.0.0.1", "8.8.8.8 ", "8.8.8.8%eth0",
    ],
)  # fmt: skip
def test_what_is_not_a_public_address_is_not_called(address: str) -> None:
    assert not outgoing.is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00::1"])
def test_public_addresses_are_called(address: str) -> None:
    assert outgoing.is_public(address)


@given(st.ip_addresses())
def test_no_address_that_is_public_is_special_by_the_registries(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    if outgoing.is_public(str(ip)):
        assert ip.is_global
        assert not any([ip.is_multicast, ip.is_reserved, ip.is_loopback, ip.is_link_local, ip.is_unspecified])


@given(
    st.ip_addresses(v=4),
    st.sampled_from(
        [
            ("::", 0),
            ("::ffff:0:0", 0),
            ("64:ff9b::", 0),
            ("64:ff9b:1::", 64),
            ("2002::", 80),
            ("2001::", 0),
            ("2001::", 64),
        ]
    ),
)
def test_no_ipv4_address_passes_inside_an_ipv6_one(ip: ipaddress.IPv4Address, where: tuple[str, int]) -> None:
    prefix, shift = where
    assert not outgoing.is_public(str(ipaddress.IPv6Address(int(ipaddress.IPv6Address(prefix)) | int(ip) << shift)))


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "LOCALHOST", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1",
        "127.0.0.1.", "0.0.0.0", "0", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]",
        "１２７.0.0.1", "ⓛⓞⓒⓐⓛⓗⓞⓢⓣ", "127。0。0。1", "user:password@127.0.0.1",
    ],
)  # fmt: skip
async def test_no_notation_of_this_host_reaches_it(app: Any, everywhere: EndpointServer, host: str) -> None:
    app(http=GUARDED)
    with pytest.raises(wqcore.Discard):
        await get(f"http://{host}:{everywhere.port}/")
    assert everywhere.connections == 0


async def test_the_reason_names_the_host_its_address_and_the_setting(app: Any, everywhere: EndpointServer) -> None:
    app(http=GUARDED)
    with pytest.raises(wqcore.Discard, match=r"localhost \(.*1\).*app\.http\.allow_private_addresses = true"):
        await get(f"http://localhost:{everywhere.port}/")
    with pytest.raises(wqcore.Discard, match=r"host 127\.0\.0\.1 is not .*app\.http\.allow_private_addresses"):
        await get(f"http://127.0.0.1:{everywhere.port}/")


async def test_the_setting_opens_the_guard(app: Any, everywhere: EndpointServer) -> None:
    app(http={"allow_private_addresses": True})
    assert (await get(f"http://localhost:{everywhere.port}/")).body == b"{}"


async def test_of_a_name_with_public_and_private_addresses_only_the_public_are_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answer(*args: Any, **kwargs: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 80)) for ip in ("10.0.0.1", "8.8.8.8", "127.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    found = await outgoing.PublicResolver().resolve("mixed.example", 80)
    assert [result["host"] for result in found] == ["8.8.8.8"]


async def test_a_redirect_is_an_answer_unless_it_is_to_be_followed(app: Any, endpoint: EndpointServer) -> None:
    app()
    moved = Answer(302, b"", {"location": "/there"})
    endpoint.will_answer(moved, moved, {"n": 1})
    assert (await get(endpoint.url)).status == 302
    assert (await get(endpoint.url, follow_redirects=True)).body == b'{"n":1}'
    assert [request.path for request in endpoint.requests] == ["/api/trigger", "/api/trigger", "/there"]


async def test_a_redirect_to_a_private_address_is_refused(
    app: Any, endpoint: EndpointServer, everywhere: EndpointServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    app(http=GUARDED)
    monkeypatch.setattr(outgoing, "is_public", lambda address: address == "127.0.0.1")
    endpoint.will_answer(Answer(302, b"", {"location": f"http://127.0.0.2:{everywhere.port}/"}))
    with pytest.raises(wqcore.Discard, match=r"host 127\.0\.0\.2"):
        await get(endpoint.url, follow_redirects=True)
    assert (len(endpoint.requests), everywhere.connections) == (1, 0)


async def test_redirects_without_end_are_a_permanent_failure(app: Any, endpoint: EndpointServer) -> None:
    app(http={"redirects_max": 3})
    endpoint.will_answer(Answer(302, b"", {"location": endpoint.url}))
    with pytest.raises(wqcore.Discard, match="redirects_max = 3"):
        await get(endpoint.url, follow_redirects=True)
    assert len(endpoint.requests) == 4


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://example.com/", "http://[::1", ""])
async def test_a_redirect_to_what_is_no_http_url_opens_nothing(
    app: Any, endpoint: EndpointServer, location: str
) -> None:
    app()
    endpoint.will_answer(Answer(302, b"secret", {"location": location}))
    try:
        assert not (await get(endpoint.url, follow_redirects=True)).ok
    except wqcore.Discard:
        pass
    assert {request.path for request in endpoint.requests} == {"/api/trigger"}


async def test_cookies_are_not_kept(app: Any, endpoint: EndpointServer) -> None:
    app()
    endpoint.will_answer(Answer(headers={"set-cookie": "session=1"}), {})
    await get(endpoint.url)
    await get(endpoint.url)
    assert "cookie" not in endpoint.requests[1].headers


async def test_a_netrc_is_not_read(app: Any, endpoint: EndpointServer, monkeypatch: Any, tmp_path: Any) -> None:
    (tmp_path / "netrc").write_text("default login ada password canary\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    app()
    await get(endpoint.url)
    assert "authorization" not in endpoint.requests[0].headers


async def test_a_proxy_gets_the_requests(app: Any, endpoint: EndpointServer) -> None:
    app(http={"proxy": f"http://127.0.0.1:{endpoint.port}", **GUARDED})
    assert (await get("http://shop.example/x")).ok
    [request] = endpoint.requests
    assert (request.path, request.headers["host"]) == ("http://shop.example/x", "shop.example")


async def test_an_answer_over_the_limit_is_a_permanent_failure_however_it_is_framed(
    app: Any, endpoint: EndpointServer
) -> None:
    app(http={"response_bytes_max": 2_000})
    endpoint.will_answer(Answer(body=b"x" * 2_000), Answer(body=b"x" * 2_001))
    assert len((await get(endpoint.url)).body) == 2_000
    with pytest.raises(wqcore.Discard, match="response_bytes_max = 2000"):
        await get(endpoint.url)


async def test_a_refusal_of_any_size_is_read_to_its_beginning_only(app: Any, endpoint: EndpointServer) -> None:
    app(http={"response_bytes_max": 2_000})
    endpoint.will_answer(Answer(500, b"x" * 5_000_000))
    answer = await get(endpoint.url)
    assert (answer.status, len(answer.body)) == (500, outgoing.REFUSAL_BYTES_READ)


async def test_a_compressed_answer_is_refused(app: Any, endpoint: EndpointServer) -> None:
    app()
    endpoint.will_answer(Answer(body=gzip.compress(b"x" * 1_000_000), headers={"content-encoding": "gzip"}))
    with pytest.raises(wqcore.Discard, match="encoded as 'gzip'"):
        await get(endpoint.url)
    assert endpoint.requests[0].headers["accept-encoding"] == "identity"


async def test_no_connection_and_no_full_answer_are_retried(app: Any, endpoint: EndpointServer) -> None:
    app(http={"total_timeout_s": 0.2})
    endpoint.will_answer(Answer(delay_s=30.0))
    with pytest.raises(wqcore.Retry, match=r"the request: no full answer within 0\.2 s"):
        await get(endpoint.url)
    await endpoint.stop()
    with pytest.raises(wqcore.Retry, match="the request: ConnectError"):
        await get(endpoint.url)


async def test_a_listener_that_accepts_nothing_is_retried_after_the_connect_time_out(app: Any) -> None:
    app(http={"connect_timeout_s": 0.2})
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        with pytest.raises(wqcore.Retry, match=r"no connection within 0\.2 s"):
            await get(f"http://127.0.0.1:{full.getsockname()[1]}/")
        for one in waiting:
            one.close()


@pytest.mark.parametrize("url", ["http://[::1", "ftp://a.example/", "http://", "http://a:b:c/"])
async def test_a_url_that_cannot_be_called_is_a_permanent_failure(app: Any, url: str) -> None:
    app()
    with pytest.raises(wqcore.Discard, match="the request: "):
        await get(url)


async def test_headers_that_say_how_a_message_travels_are_the_clients_own(app: Any, endpoint: EndpointServer) -> None:
    app()
    given = {"Content-Length": "1", "Transfer-Encoding": "chunked", "Accept-Encoding": "gzip", "X-Mine": "kept"}
    await get(endpoint.url, headers=given, body=b"{}")
    await get(endpoint.url)
    first, _ = endpoint.requests
    assert (first.body, first.headers["accept-encoding"], first.headers["x-mine"]) == (b"{}", "identity", "kept")
    assert "transfer-encoding" not in first.headers


async def test_a_header_that_cannot_be_sent_is_a_permanent_failure(app: Any, endpoint: EndpointServer) -> None:
    app()
    with pytest.raises(wqcore.Discard, match="the request: "):
        await get(endpoint.url, headers={"x-evil": "a\r\nx-injected: b"})
    assert endpoint.requests == []


@pytest.mark.parametrize(
    ("status", "headers", "after_s"),
    [
        (500, {}, None), (503, {"retry-after": "120"}, 120.0), (429, {"retry-after": "7"}, 7.0), (408, {}, None),
        (429, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0), (429, {"retry-after": "99999999999"}, 86_400.0),
        (429, {"retry-after": "soon"}, None), (429, {"retry-after": "-1"}, None),
    ],
)  # fmt: skip
def test_what_may_succeed_later_is_retried_when_the_answer_says(
    status: int, headers: dict[str, str], after_s: float | None
) -> None:
    outcome = outgoing.refusal(outgoing.Answer(status, headers, b" no\n way "), "it")
    assert isinstance(outcome, wqcore.Retry)
    assert (str(outcome), outcome.after_s) == (f"it answered {status}: no way", after_s)


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 410, 422])
def test_other_refusals_are_permanent(status: int) -> None:
    outcome = outgoing.refusal(outgoing.Answer(status, {}, b""), "it")
    assert isinstance(outcome, wqcore.Discard)
    assert str(outcome) == f"it answered {status}"
