"""Connections: what waits for one goes on when it is made, and a token is refreshed once when it is due."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import unquote_plus

import pytest
import pytest_asyncio
from aiohttp import web

import wqcore
from handlers import ids, secrets
from handlers.connections import (
    ConnectionCreated,
    MissingConnectionCreated,
    RefreshOAuthToken,
    connection_created,
    missing_connection_created,
    refresh_oauth_token,
)
from tests.fix_job import make_job
from tests.fix_pg import empty_dsn, pg
from tests.fix_platform import Platform, platform
from wqcore import testing

__all__ = ["empty_dsn", "pg", "platform"]

CLIENT_ID, CLIENT_SECRET = "the client:1", "s3cret & ü+"
HOUR = 3600.0


class TokenEndpoint:
    """A token endpoint that rotates refresh tokens and takes each only once.

    Attributes:
        valid: the refresh token that it takes; each grant replaces it.
        forms: of all requests that got no prepared reply; grants: of those that it granted.
        replies: (status, body, headers) given in turn instead of a grant.
        answer: put over what a grant answers; a value of None leaves the field out.
        gate: a grant waits until it is set.
    """

    def __init__(self) -> None:
        self.valid = "refresh-0"
        self.forms: list[dict[str, str]] = []
        self.grants: list[dict[str, str]] = []
        self.requests = 0
        self.replies: list[tuple[int, bytes, dict[str, str]]] = []
        self.answer: dict[str, Any] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.url = ""

    async def token(self, request: web.Request) -> web.Response:
        self.requests += 1
        if self.replies:
            status, body, headers = self.replies.pop(0)
            return web.Response(status=status, body=body, headers=headers)
        form = {name: str(value) for name, value in (await request.post()).items()}
        self.forms.append(form)
        method, _, pair = request.headers.get("authorization", "").partition(" ")
        login = [unquote_plus(part) for part in base64.b64decode(pair).decode().split(":")]
        if (method, login) != ("Basic", [CLIENT_ID, CLIENT_SECRET]):
            return web.json_response({"error": "invalid_client"}, status=401)
        if (form["grant_type"], form["refresh_token"]) != ("refresh_token", self.valid):
            return web.json_response({"error": "invalid_grant", "error_description": "used"}, status=400)
        await self.gate.wait()
        self.grants.append(form)
        self.valid = f"refresh-{len(self.grants)}"
        answer = {
            "access_token": f"access-{len(self.grants)}", "token_type": "Bearer", "expires_in": 3600,
            "refresh_token": self.valid,
        } | self.answer  # fmt: skip
        return web.json_response({name: value for name, value in answer.items() if value is not None})


@pytest_asyncio.fixture
async def tokens() -> AsyncIterator[TokenEndpoint]:
    server = TokenEndpoint()
    app = web.Application()
    app.router.add_post("/token", server.token)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/token"
    yield server
    server.gate.set()
    await runner.cleanup()


def integrate(platform: Platform, token_url: str | None = None) -> str:
    """An integration of the organization; its id."""
    integration = ids.new("int")
    platform.sql(
        "insert into {s}.integration (id, organization_id, slug, title, auth_source, token_url, client_id, "
        "client_secret_sealed, scopes) values (%s, %s, 'github', 'GitHub', 'HOSTED', %s, %s, %s, '{{repo}}')",
        integration, platform.organization, token_url, CLIENT_ID, secrets.seal(CLIENT_SECRET),
    )  # fmt: skip
    return integration


def connect(platform: Platform, integration: str, *, account: str | None = None, expires_s: float | None = None) -> str:
    """A connection whose token expires in `expires_s` seconds and was given an hour before; its id."""
    connection = ids.new("conn")
    platform.sql(
        "insert into {s}.connection (id, organization_id, integration_id, account_id, access_token_sealed, "
        "refresh_token_sealed, scopes, issued_at, expires_at) values (%s, %s, %s, %s, %s, %s, '{{repo,gist}}', "
        "now() - interval '1 hour', now() + make_interval(secs => %s::float8))",
        connection, platform.organization, integration, account, secrets.seal("access-0"), secrets.seal("refresh-0"),
        expires_s,
    )  # fmt: skip
    return connection


def miss(platform: Platform, integration: str, *, account: str | None = None, runs: int = 0) -> tuple[str, list[str]]:
    """A missing connection and runs that wait for it; their ids."""
    missing = ids.new("miss")
    platform.sql(
        "insert into {s}.missing_connection (id, organization_id, environment_id, integration_id, account_id) "
        "values (%s, %s, %s, %s, %s)",
        missing, platform.organization, platform.environment, integration, account,
    )  # fmt: skip
    return missing, [wait(platform, missing) for _ in range(runs)]


def wait(platform: Platform, missing: str) -> str:
    """A run that waits for a missing connection; its id."""
    job, version, queue, event, run = (ids.new(prefix) for prefix in ("job", "ver", "queue", "evt", "run"))
    endpoint = platform.add_endpoint("http://127.0.0.1:1/", slug=ids.new("slug"))
    for statement, values in (
        ("job (id, project_id, slug, title) values (%s, %s, %s, 'A')", (job, platform.project, job)),
        ("job_queue (id, environment_id, name, max_jobs) values (%s, %s, %s, 1)", (queue, platform.environment, queue)),
        (
            "job_version (id, job_id, environment_id, endpoint_id, queue_id, version, event, trigger) "
            "values (%s, %s, %s, %s, %s, '1', '{{}}', '{{}}')",
            (version, job, platform.environment, endpoint, queue),
        ),
        (
            "event_record (id, event_id, environment_id, name, source, payload) values (%s, %s, %s, 'x', 'y', '1')",
            (event, event, platform.environment),
        ),
        (
            "job_run (id, number, job_id, version_id, environment_id, endpoint_id, queue_id, event_id, status) "
            "values (%s, 1, %s, %s, %s, %s, %s, %s, 'WAITING_ON_CONNECTIONS')",
            (run, job, version, platform.environment, endpoint, queue, event),
        ),
        ("waiting_run (run_id, missing_connection_id) values (%s, %s)", (run, missing)),
    ):
        platform.sql("insert into {s}." + statement, *values)
    return run


def events(platform: Platform) -> list[tuple[Any, ...]]:
    """(event id, name, account, payload) of all events."""
    return platform.sql(
        "select event_id, name, account_id, payload from {s}.event_record where name <> 'x' order by id"
    )


def started(platform: Platform) -> list[str]:
    return sorted(args["id"] for args in platform.jobs("startRun"))


async def test_a_connection_starts_the_runs_that_waited_and_tells_jobs(platform: Platform) -> None:
    integration = integrate(platform)
    missing, runs = miss(platform, integration, runs=2)
    connection = connect(platform, integration)
    await connection_created(ConnectionCreated(connection), make_job())
    assert started(platform) == sorted(runs)
    assert platform.one("select resolved_at is not null from {s}.missing_connection")
    [(event_id, name, account, payload)] = events(platform)
    assert (event_id, name, account) == (
        f"{missing}:resolved", "dev.trigger.notifications.missingConnectionResolved", None,
    )  # fmt: skip
    assert payload["client"].pop("createdAt") == payload["client"].pop("updatedAt")
    assert payload == {
        "id": missing,
        "type": "DEVELOPER",
        "client": {
            "id": "github", "title": "GitHub", "scopes": ["repo"], "integrationIdentifier": "github",
            "integrationAuthMethod": "apiKey",
        },
        "expiresAt": "9999-12-31T23:59:59Z",
    }  # fmt: skip


async def test_a_repetition_starts_and_tells_nothing_more(platform: Platform) -> None:
    integration = integrate(platform, "http://127.0.0.1:1/token")
    miss(platform, integration, runs=1)
    connection = connect(platform, integration, expires_s=HOUR)
    for _ in range(2):
        await connection_created(ConnectionCreated(connection), make_job())
    assert len(started(platform)) == len(events(platform)) == len(platform.jobs("refreshOAuthToken")) == 1


async def test_two_connections_at_once_resolve_it_once(platform: Platform) -> None:
    integration = integrate(platform)
    miss(platform, integration, runs=1)
    both = [connect(platform, integration) for _ in range(2)]
    await asyncio.gather(*(connection_created(ConnectionCreated(one), make_job()) for one in both))
    assert len(started(platform)) == len(events(platform)) == 1


async def test_a_connection_of_an_account_is_for_that_account_only(platform: Platform) -> None:
    integration = integrate(platform)
    miss(platform, integration, runs=1)
    miss(platform, integration, account="ada", runs=1)
    of_bob, [run] = miss(platform, integration, account="bob", runs=1)
    await connection_created(ConnectionCreated(connect(platform, integration, account="bob")), make_job())
    assert started(platform) == [run]
    [(event_id, _, account, payload)] = events(platform)
    assert (event_id, account) == (f"{of_bob}:resolved", "bob")
    assert (payload["type"], payload["account"]) == ("EXTERNAL", {"id": "bob", "metadata": None})


async def test_a_run_that_begins_to_wait_at_the_same_moment_is_started(platform: Platform) -> None:
    integration = integrate(platform)
    missing, _ = miss(platform, integration)
    connection = connect(platform, integration)
    with platform.conn.transaction():
        run = wait(platform, missing)
        working = asyncio.create_task(connection_created(ConnectionCreated(connection), make_job()))
        while not platform.one("select count(*) from pg_locks where not granted"):
            await asyncio.sleep(0.01)
    await working
    assert started(platform) == [run]


async def test_a_disabled_or_deleted_connection_resolves_nothing(platform: Platform) -> None:
    integration = integrate(platform)
    miss(platform, integration, runs=1)
    connection = connect(platform, integration)
    platform.sql("update {s}.connection set enabled = false")
    await connection_created(ConnectionCreated(connection), make_job())
    await connection_created(ConnectionCreated("conn_gone"), make_job())
    assert started(platform) == events(platform) == []


async def test_a_connection_that_expires_is_refreshed_300_s_before(platform: Platform) -> None:
    connection = connect(platform, integrate(platform, "http://127.0.0.1:1/token"), expires_s=HOUR)
    await connection_created(ConnectionCreated(connection), make_job())
    assert platform.jobs("refreshOAuthToken") == [{"organizationId": platform.organization, "connectionId": connection}]
    assert planned(platform) == [(f"refresh:{connection}", 300.0)]


def planned(platform: Platform) -> list[tuple[str, float]]:
    """(job key, seconds before the token expires) of the refreshes that wait."""
    return platform.sql(
        "select j.job_key, extract(epoch from c.expires_at - j.run_at)::float8 "
        "from {wq}.job j join {s}.connection c on j.job_key = 'refresh:' || c.id where j.kind = 'refreshOAuthToken'"
    )


async def test_a_missing_connection_is_told_once(platform: Platform) -> None:
    missing, _ = miss(platform, integrate(platform), account="ada")
    for _ in range(2):
        await missing_connection_created(MissingConnectionCreated(missing), make_job())
    [(event_id, name, account, payload)] = events(platform)
    assert (event_id, name, account) == (f"{missing}:missing", "dev.trigger.notifications.missingConnection", "ada")
    assert (payload["type"], payload["client"]["id"]) == ("EXTERNAL", "github")
    assert payload["authorizationUrl"] == f"http://127.0.0.1:3030/connect/{missing}"
    assert platform.jobs("connectionCreated") == []


async def test_a_connection_made_before_it_was_missed_is_looked_at_again(platform: Platform) -> None:
    integration = integrate(platform)
    connect(platform, integration, account="ada")
    connection = connect(platform, integration)
    missing, _ = miss(platform, integration)
    await missing_connection_created(MissingConnectionCreated(missing), make_job())
    assert platform.jobs("connectionCreated") == [{"id": connection}]


async def test_nothing_is_told_of_what_is_resolved_and_an_unknown_one_is_a_permanent_failure(
    platform: Platform,
) -> None:
    missing, _ = miss(platform, integrate(platform))
    platform.sql("update {s}.missing_connection set resolved_at = now()")
    await missing_connection_created(MissingConnectionCreated(missing), make_job())
    assert events(platform) == []
    with pytest.raises(wqcore.Discard, match="no missing connection miss_gone"):
        await missing_connection_created(MissingConnectionCreated("miss_gone"), make_job())


async def refresh(platform: Platform, connection: str) -> None:
    await refresh_oauth_token(RefreshOAuthToken(platform.organization, connection), make_job())


def stored(platform: Platform) -> tuple[str, str, int]:
    """Access token, refresh token and version of the connection."""
    [(access, refresh_, version)] = platform.sql(
        "select access_token_sealed, refresh_token_sealed, token_version from {s}.connection"
    )
    return secrets.unseal(access), secrets.unseal(refresh_), version


async def test_a_token_is_refreshed_and_rotated_and_the_next_refresh_planned(
    platform: Platform, tokens: TokenEndpoint
) -> None:
    connection = connect(platform, integrate(platform, tokens.url), expires_s=200)
    await refresh(platform, connection)
    assert tokens.grants == [{"grant_type": "refresh_token", "refresh_token": "refresh-0", "scope": "repo gist"}]
    assert stored(platform) == ("access-1", "refresh-1", 2)
    assert planned(platform) == [(f"refresh:{connection}", 300.0)]
    assert b"access-1" not in platform.one("select access_token_sealed from {s}.connection")


async def test_a_repetition_does_not_ask_again(platform: Platform, tokens: TokenEndpoint) -> None:
    connection = connect(platform, integrate(platform, tokens.url), expires_s=200)
    for _ in range(2):
        await refresh(platform, connection)
    assert (tokens.requests, len(planned(platform))) == (1, 1)


@pytest.mark.parametrize(("expires_s", "requests"), [(301.0, 0), (299.0, 1), (-5.0, 1)])
async def test_a_token_is_due_300_s_before_it_expires(
    platform: Platform, tokens: TokenEndpoint, expires_s: float, requests: int
) -> None:
    await refresh(platform, connect(platform, integrate(platform, tokens.url), expires_s=expires_s))
    assert tokens.requests == requests


@pytest.mark.parametrize(("life_s", "before_s"), [(400, 200.0), (60, 30.0), (0, -10.0)])
async def test_a_token_of_a_short_life_is_not_refreshed_without_end(
    platform: Platform, tokens: TokenEndpoint, life_s: int, before_s: float
) -> None:
    tokens.answer = {"expires_in": life_s}
    connection = connect(platform, integrate(platform, tokens.url), expires_s=1)
    await refresh(platform, connection)
    assert planned(platform) == [(f"refresh:{connection}", before_s)]


async def test_a_response_without_refresh_token_scope_or_life_keeps_and_plans_nothing(
    platform: Platform, tokens: TokenEndpoint
) -> None:
    tokens.answer = {"refresh_token": None, "expires_in": None}
    connection = connect(platform, integrate(platform, tokens.url), expires_s=1)
    for _ in range(2):
        await refresh(platform, connection)
    assert (tokens.requests, stored(platform), planned(platform)) == (1, ("access-1", "refresh-0", 2), [])
    assert platform.one("select scopes from {s}.connection") == ["repo", "gist"]


async def test_a_life_as_text_and_a_narrower_scope_are_understood(platform: Platform, tokens: TokenEndpoint) -> None:
    tokens.answer = {"expires_in": "3600", "scope": "gist"}
    connection = connect(platform, integrate(platform, tokens.url), expires_s=1)
    await refresh(platform, connection)
    assert platform.one("select scopes from {s}.connection") == ["gist"]
    assert planned(platform) == [(f"refresh:{connection}", 300.0)]


async def test_while_a_token_is_refreshed_another_job_comes_back_later(
    platform: Platform, tokens: TokenEndpoint
) -> None:
    connection = connect(platform, integrate(platform, tokens.url), expires_s=1)
    tokens.gate.clear()
    first = asyncio.create_task(refresh(platform, connection))
    while not tokens.requests:
        await asyncio.sleep(0.01)
    with pytest.raises(wqcore.Snooze):
        await refresh(platform, connection)
    tokens.gate.set()
    await first
    await refresh(platform, connection)
    assert (tokens.requests, stored(platform)) == (1, ("access-1", "refresh-1", 2))


async def test_many_jobs_on_real_workers_refresh_it_once(platform: Platform, tokens: TokenEndpoint) -> None:
    connection = connect(platform, integrate(platform, tokens.url), expires_s=1)
    for _ in range(6):
        await platform.client.insert(RefreshOAuthToken(platform.organization, connection))
    first = await platform.drain()
    testing.travel(platform.conn, seconds=60)
    second = await platform.drain()
    assert (tokens.requests, stored(platform)) == (1, ("access-1", "refresh-1", 2))
    assert first.completed + second.completed == 6


async def test_a_refresh_that_ends_in_the_middle_leaves_the_lock_free(
    platform: Platform, tokens: TokenEndpoint
) -> None:
    connection = connect(platform, integrate(platform, tokens.url), expires_s=1)
    tokens.gate.clear()
    broken = asyncio.create_task(refresh(platform, connection))
    while not tokens.requests:
        await asyncio.sleep(0.01)
    broken.cancel()
    with pytest.raises(asyncio.CancelledError):
        await broken
    tokens.gate.set()
    while not tokens.grants:
        await asyncio.sleep(0.01)
    tokens.valid = "refresh-0"  # a service that bears the repetition
    await refresh(platform, connection)
    assert stored(platform) == ("access-2", "refresh-2", 2)


@pytest.mark.parametrize(
    ("status", "headers", "after_s"),
    [(500, {}, None), (503, {"retry-after": "9"}, 9.0), (429, {"retry-after": "7"}, 7.0)],
)
async def test_a_token_endpoint_that_fails_is_asked_again(
    platform: Platform, tokens: TokenEndpoint, status: int, headers: dict[str, str], after_s: float | None
) -> None:
    connection = connect(platform, integrate(platform, tokens.url), expires_s=1)
    tokens.replies = [(status, b'{"error": "invalid_grant"}' if status == 500 else b"", headers)]
    with pytest.raises(wqcore.Retry, match=f"answered {status}") as raised:
        await refresh(platform, connection)
    assert raised.value.after_s == after_s
    await refresh(platform, connection)
    assert stored(platform) == ("access-1", "refresh-1", 2)


async def test_no_token_endpoint_is_retried(platform: Platform) -> None:
    connection = connect(platform, integrate(platform, "http://127.0.0.1:1/token"), expires_s=1)
    with pytest.raises(wqcore.Retry, match="ConnectError"):
        await refresh(platform, connection)


@pytest.mark.parametrize("status", [400, 200])
async def test_an_invalid_grant_disables_the_connection_for_good(
    platform: Platform, tokens: TokenEndpoint, status: int
) -> None:
    connection = connect(platform, integrate(platform, tokens.url), expires_s=1)
    tokens.replies = [(status, b'{"error": "invalid_grant"}', {})]
    with pytest.raises(wqcore.Discard, match="invalid_grant"):
        await refresh(platform, connection)
    assert not platform.one("select enabled from {s}.connection")
    with pytest.raises(wqcore.Discard, match="is disabled"):
        await refresh(platform, connection)
    assert (tokens.requests, stored(platform)[2], planned(platform)) == (1, 1, [])


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (401, b'{"error": "invalid_client"}', "answered 401: .*invalid_client"),
        (404, b"<html>", "answered 404"),
        (200, b'{"error": "bad_client", "error_description": "which?"}', "answered bad_client: which?"),
        (200, b"<html>", "does not fit"),
        (200, b'{"token_type": "Bearer"}', "access_token"),
        (200, b'{"access_token": "canary", "expires_in": -1}', r"expires_in"),
        (200, b'{"access_token": ""}', "access_token"),
    ],
)
async def test_another_refusal_is_a_permanent_failure_and_the_connection_stays(
    platform: Platform, tokens: TokenEndpoint, status: int, body: bytes, reason: str
) -> None:
    connection = connect(platform, integrate(platform, tokens.url), expires_s=1)
    tokens.replies = [(status, body, {})]
    with pytest.raises(wqcore.Discard, match=reason) as raised:
        await refresh(platform, connection)
    assert "canary" not in str(raised.value)
    assert platform.one("select enabled from {s}.connection")
    assert stored(platform) == ("access-0", "refresh-0", 1)


async def test_a_client_without_a_secret_names_itself_in_the_form(platform: Platform, tokens: TokenEndpoint) -> None:
    connection = connect(platform, integrate(platform, tokens.url), expires_s=1)
    platform.sql("update {s}.integration set client_secret_sealed = null")
    with pytest.raises(wqcore.Discard, match="invalid_client"):  # this endpoint wants Basic
        await refresh(platform, connection)
    assert tokens.forms[0]["client_id"] == CLIENT_ID


async def test_what_cannot_be_refreshed_is_a_permanent_failure(platform: Platform, tokens: TokenEndpoint) -> None:
    connection = connect(platform, integrate(platform, tokens.url), expires_s=1)
    with pytest.raises(wqcore.Discard, match="has no connection"):
        await refresh_oauth_token(RefreshOAuthToken("org_other", connection), make_job())
    platform.sql("update {s}.connection set refresh_token_sealed = null")
    with pytest.raises(wqcore.Discard, match="no refresh token"):
        await refresh(platform, connection)
    assert tokens.requests == 0


async def test_a_refresh_of_a_version_that_is_past_is_not_stored(platform: Platform, tokens: TokenEndpoint) -> None:
    connection = connect(platform, integrate(platform, tokens.url), expires_s=1)
    tokens.gate.clear()
    late = asyncio.create_task(refresh(platform, connection))
    while not tokens.requests:
        await asyncio.sleep(0.01)
    platform.sql("update {s}.connection set token_version = 7")  # made again by its user meanwhile
    tokens.gate.set()
    await late
    assert stored(platform) == ("access-0", "refresh-0", 7)
    assert planned(platform) == []
