"""Connections to other services: runs that wait for one go on when it is made, and its token is refreshed once when due.

connectionCreated and missingConnectionCreated are one transaction each: a crash leaves nothing of them or all of it.

refreshOAuthToken: take the connection's lock (another job that has it → come back later), read the token, ask the token
endpoint, store what it gave over the version that was read, together with the next refresh, give the lock back. A crash
before the request leaves nothing, and the lock is free when the session ends. A crash between the request and the commit
loses what the endpoint gave: a service that takes a refresh token only once then answers invalid_grant, and the
connection is disabled until it is made again. That window cannot be closed from this side.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
from typing import Annotated, Any, Final
from urllib.parse import quote_plus, urlencode

import msgspec
import psycopg
from msgspec import Meta

import wqcore
from handlers import outgoing, platform, secrets, store
from handlers.ingest import Event, ingest
from handlers.runs import StartRun

MISSING: Final = "dev.trigger.notifications.missingConnection"
RESOLVED: Final = "dev.trigger.notifications.missingConnectionResolved"
NEVER: Final = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)
"""`expiresAt` of a connection that does not expire: the SDK's schema wants a date."""

REFRESH_BEFORE: Final = dt.timedelta(seconds=300)
REFRESH_GAP: Final = dt.timedelta(seconds=10)
"""Between two refreshes at least, whatever life a service gives its tokens: a life of 0 s would refresh without end."""
LOCKED_S: Final = 2.0
"""How long a job waits that finds the token being refreshed."""


@wqcore.kind("connectionCreated", queue="default", max_attempts=3, timeout_s=30)
class ConnectionCreated(msgspec.Struct, frozen=True, rename="camel"):
    """Starts the runs that waited for a connection.

    Attributes:
        id (str): the connection.
    """

    id: str


@wqcore.kind("missingConnectionCreated", queue="default", max_attempts=3, timeout_s=30)
class MissingConnectionCreated(msgspec.Struct, frozen=True, rename="camel"):
    """Tells the organization that a run waits for a connection.

    Attributes:
        id (str): the missing connection.
    """

    id: str


@wqcore.kind("refreshOAuthToken", queue="internal-queue", max_attempts=3, timeout_s=60)
class RefreshOAuthToken(msgspec.Struct, frozen=True, rename="camel"):
    """Refreshes the token of a connection and enqueues the next refresh.

    Attributes:
        organization_id (str): who owns the connection.
        connection_id (str): the connection.
    """

    organization_id: str
    connection_id: str


class Grant(msgspec.Struct, frozen=True):
    """A token endpoint's answer (RFC 6749 §5.1); some send `expires_in` as a string."""

    access_token: Annotated[str, Meta(min_length=1)]
    expires_in: Annotated[float, Meta(ge=0, le=3.2e9)] | None = None
    refresh_token: str | None = None
    scope: str | None = None

    def __repr__(self) -> str:
        return "<Grant>"


class Refused(msgspec.Struct, frozen=True):
    """A token endpoint's refusal (RFC 6749 §5.2)."""

    error: str
    error_description: str = ""


@wqcore.handler
async def connection_created(args: ConnectionCreated, job: wqcore.Job) -> None:
    """Resolves what was missing, tells the organization's jobs, starts the runs that waited, and plans the first refresh.

    A connection that is gone or disabled changes nothing.
    """
    db = await store.open_store()
    async with db.transaction() as tx:
        connection = await tx.row("connection_made", id=args.id)
        if connection is None:
            return
        resolved = await tx.rows(
            "resolve_missing_connections",
            organization=connection.organization_id,
            integration=connection.integration_id,
            account=connection.account_id,
        )
        for missing in resolved:
            payload = _notification(missing, connection)
            payload["client"] |= {
                "integrationIdentifier": connection.slug,
                "integrationAuthMethod": "apiKey" if connection.token_url is None else "oauth2",
            }
            payload["expiresAt"] = connection.expires_at or NEVER
            await _notify(tx, missing, RESOLVED, f"{missing.id}:resolved", payload)
        for run in await tx.rows("runs_waiting_for", missing=[missing.id for missing in resolved]):
            await tx.enqueue(StartRun(run.id))
        if connection.expires_at is not None and connection.can_refresh:
            # one that waits or runs already knows this token or a newer one
            await _enqueue_refresh(tx, connection.organization_id, connection, job_key_mode="unsafe_dedupe")


@wqcore.handler
async def missing_connection_created(args: MissingConnectionCreated, job: wqcore.Job) -> None:
    """Tells the organization's jobs that a connection is missing, unless it was resolved meanwhile.

    When the connection exists by now, its connectionCreated may have looked before this row was committed: once more.
    """
    db = await store.open_store()
    async with db.transaction() as tx:
        missing = await tx.row("missing_connection", id=args.id)
        if missing is None:
            raise wqcore.Discard(f"no missing connection {args.id}")
        if missing.resolved_at is not None:
            return
        payload = _notification(missing, missing)
        payload["authorizationUrl"] = f"{platform.settings().public_url}/connect/{missing.id}"
        await _notify(tx, missing, MISSING, f"{missing.id}:missing", payload)
        if missing.connection_id is not None:
            await tx.enqueue(ConnectionCreated(missing.connection_id))


@wqcore.handler
async def refresh_oauth_token(args: RefreshOAuthToken, job: wqcore.Job) -> None:
    """Refreshes the token by the refresh_token grant, unless it is fresh, and enqueues the next refresh.

    Raises:
        wqcore.Discard: no such connection, it cannot be refreshed, or the token endpoint refused; after invalid_grant
            the connection is disabled.
        wqcore.Retry: the token endpoint did not answer, or for now refuses.
        wqcore.Snooze: another job refreshes it.
    """
    db = await store.open_store()
    async with db.connection() as one:
        if await _due(one, args) is None:
            return
        # a lock of the session: a transaction must not stay open during a call, and a crash must free it
        lock = await one.row("lock_refresh", id=args.connection_id)
        if lock is None or not lock.locked:
            raise wqcore.Snooze(after=LOCKED_S)
        try:
            token = await _due(one, args)  # again: whoever had the lock may have refreshed it
            if token is not None:
                await _refresh(one, args, token)
        finally:
            with contextlib.suppress(psycopg.Error):  # a connection that is broken has lost the lock already
                await one.row("unlock_refresh", id=args.connection_id)


async def _due(one: store.Transaction, args: RefreshOAuthToken) -> store.Row | None:
    """The token, or None when it is fresh or does not expire. Raises wqcore.Discard when it cannot be refreshed."""
    token = await one.row("connection_token", id=args.connection_id, organization=args.organization_id)
    if token is None:
        raise wqcore.Discard(f"organization {args.organization_id} has no connection {args.connection_id}")
    if not token.enabled:
        raise wqcore.Discard(f"connection {token.id} is disabled; it has to be made again")
    if token.expires_at is None or token.now < _refresh_at(token):
        return None
    if token.refresh_token_sealed is None or token.token_url is None:
        raise wqcore.Discard(f"connection {token.id} has no refresh token, or its integration no token_url")
    return token


async def _refresh(one: store.Transaction, args: RefreshOAuthToken, token: store.Row) -> None:
    what = f"refresh of connection {token.id} at {token.token_url}"
    answer = await _ask(token, what)
    refused = _refused(answer)
    if refused is not None and refused.error == "invalid_grant":
        await one.row("disable_connection", id=token.id, seen=token.token_version)
    if not answer.ok:
        raise outgoing.refusal(answer, what)
    if refused is not None:  # some services refuse with status 200
        raise wqcore.Discard(f"{what} answered {refused.error}: {refused.error_description}"[:500])
    await _store(one, args, token, _grant(answer, what))


async def _ask(token: store.Row, what: str) -> outgoing.Answer:
    """The request of RFC 6749 §6; a client without a secret names itself in the body (§3.2.1)."""
    form = {"grant_type": "refresh_token", "refresh_token": secrets.unseal(token.refresh_token_sealed)}
    if token.scopes:
        form["scope"] = " ".join(token.scopes)
    headers = {"content-type": "application/x-www-form-urlencoded", "accept": "application/json"}
    if token.client_secret_sealed is None:
        form["client_id"] = token.client_id or ""
    else:
        pair = f"{quote_plus(token.client_id or '')}:{quote_plus(secrets.unseal(token.client_secret_sealed))}"  # §2.3.1
        headers["authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
    return await outgoing.request("POST", token.token_url, what=what, headers=headers, body=urlencode(form).encode())


def _refused(answer: outgoing.Answer) -> Refused | None:
    """The refusal in an answer, if there is one; that of a failing server does not count."""
    if answer.status >= 500:
        return None
    try:
        return msgspec.json.decode(answer.body, type=Refused)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def _grant(answer: outgoing.Answer, what: str) -> Grant:
    try:
        return msgspec.json.decode(answer.body, type=Grant, strict=False)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise wqcore.Discard(f"{what}: the answer does not fit: {error}") from None


async def _store(one: store.Transaction, args: RefreshOAuthToken, token: store.Row, grant: Grant) -> None:
    async with one.conn.transaction():
        stored = await one.row(
            "store_token",
            id=token.id,
            seen=token.token_version,
            access_token=secrets.seal(grant.access_token),
            refresh_token=secrets.seal(grant.refresh_token) if grant.refresh_token else None,
            scopes=grant.scope.split() if grant.scope else None,
            expires_in=grant.expires_in,
        )
        if stored is not None and stored.expires_at is not None:
            await _enqueue_refresh(one, args.organization_id, stored)


async def _enqueue_refresh(tx: store.Transaction, organization_id: str, token: store.Row, **options: Any) -> None:
    args = RefreshOAuthToken(organization_id, token.id)
    run_at = max(_refresh_at(token), token.now + REFRESH_GAP)
    await tx.enqueue(args, run_at=run_at, job_key=f"refresh:{token.id}", **options)


def _refresh_at(token: store.Row) -> dt.datetime:
    """When a token is due: 300 s before it expires, but not before half of its life is over."""
    life: dt.timedelta = token.expires_at - token.issued_at
    expires_at: dt.datetime = token.expires_at
    return expires_at - min(REFRESH_BEFORE, max(life / 2, dt.timedelta(0)))


def _notification(missing: store.Row, integration: store.Row) -> dict[str, Any]:
    """What the payloads of both notifications share. Jobs listen by the id that the integration has in their code."""
    payload: dict[str, Any] = {
        "id": missing.id,
        "type": "DEVELOPER",
        "client": {
            "id": integration.slug,
            "title": integration.title,
            "scopes": integration.scopes,
            "createdAt": integration.created_at,
            "updatedAt": integration.created_at,
        },
    }
    if missing.account_id is not None:
        payload |= {"type": "EXTERNAL", "account": {"id": missing.account_id, "metadata": None}}
    return payload


async def _notify(tx: store.Transaction, missing: store.Row, name: str, event_id: str, payload: Any) -> None:
    event = Event(id=event_id, name=name, payload=payload, account_id=missing.account_id)
    await ingest(tx, missing.environment_id, [event])
