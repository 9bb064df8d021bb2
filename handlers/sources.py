"""External sources of events: stored, activated by the endpoint's own hidden job, and their requests delivered.

A source has a row, a secret, and the events that it wants from its service. registerSource writes these; while the source is
not active, or its service sends other events than wanted, activateSource sends the event that starts the endpoint's hidden
registration job, which tells the service and reports with `update_source`. Requests of the service are stored by
`accept_delivery`, handled by the endpoint in deliverHttpSourceRequest, and what it makes of them comes in as events.

A crash before a commit leaves nothing. After the commit of registerSource its repetition finds the same row and secret;
activateSource and deliverHttpSourceRequest name their events after their job and their request, so a repetition makes none;
an endpoint may be asked twice to handle one request.
"""

from __future__ import annotations

from collections.abc import Mapping
from secrets import token_hex
from typing import Any

import msgspec

import wqcore
from handlers import activation, calls, declared, deliveries, ids, registration, secrets, store
from handlers.ingest import ingest


@wqcore.kind("registerSource", queue="default", max_attempts=3, timeout_s=60)
class RegisterSource(msgspec.Struct, frozen=True, rename="camel"):
    """Stores a source of an endpoint.

    Attributes:
        endpoint_id (str): the endpoint that declares it.
        source (dict): its metadata, as the endpoint sent it.
    """

    endpoint_id: str
    source: dict[str, Any]


@wqcore.kind("activateSource", queue="default", max_attempts=3, timeout_s=120)
class ActivateSource(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Asks the endpoint to register a source with its origin.

    Attributes:
        id (str): the source.
        orphaned_events (list of str | None): events that the source no longer wants.
    """

    id: str
    orphaned_events: list[str] | None = None


@wqcore.kind("deliverHttpSourceRequest", queue="default", max_attempts=5, timeout_s=30)
class DeliverHttpSourceRequest(msgspec.Struct, frozen=True, rename="camel"):
    """Hands a stored request of an HTTP source to the endpoint.

    Its call sites add the serial key `endpoint-<endpointId>`, which the args do not hold.

    Attributes:
        id (str): the stored delivery.
    """

    id: str


@wqcore.kind("registerDynamicTrigger", queue="default", max_attempts=3, timeout_s=60)
class RegisterDynamicTrigger(msgspec.Struct, frozen=True, rename="camel"):
    """Stores a dynamic trigger and connects its jobs.

    Attributes:
        endpoint_id (str): the endpoint that declares it.
        dynamic_trigger (dict): its metadata, as the endpoint sent it.
    """

    endpoint_id: str
    dynamic_trigger: dict[str, Any]


class Update(declared.Declared, frozen=True):
    """What a registration job reports. Sources of version 1 send `registeredEvents`, those of version 2 `options`."""

    options: dict[str, list[str]] | None = None
    registered_events: list[str] | None = None
    secret: str | None = None
    data: Any = msgspec.UNSET

    def pairs(self) -> list[tuple[str, str]]:
        """The (option, value) pairs that the service sends. Raises msgspec.ValidationError when there are none."""
        if self.options is not None:
            return [(name, value) for name, values in self.options.items() for value in values]
        if self.registered_events is not None:
            return [("event", value) for value in self.registered_events]
        raise msgspec.ValidationError("Object missing required field `options`")


class DynamicRegistration(declared.Declared, frozen=True):
    """What user code registers on a dynamic trigger."""

    rule: declared.EventRule
    source: declared.SourceMetadata
    account_id: str | None = None


@wqcore.handler
async def register_source(args: RegisterSource, job: wqcore.Job) -> None:
    """Stores the source, and has it activated when its service does not send what it wants.

    Raises:
        wqcore.Retry: its registration job is not registered yet: the event that is to start it would be lost.
        wqcore.Discard: the endpoint is gone, or the metadata does not fit.
    """
    metadata = declared.read(args.source, declared.SourceMetadata, "source")
    db = await store.open_store()
    async with db.transaction() as tx:
        endpoint = await registration.endpoint_declaring(tx, args.endpoint_id)
        hidden, hidden_id = metadata.register_source_job, None
        if hidden is not None:
            hidden_id = await registration.registered_job(tx, endpoint, hidden.id)
            if hidden_id is None:
                raise wqcore.Retry(f"source {metadata.key!r}: its job {hidden.id!r} is not registered yet")
        source, events = await _put(tx, endpoint, metadata, metadata.key, register_job=hidden_id)
        orphaned = [event.value for event in events if event.name == "event" and not event.wanted]
        if not source.active or any(event.wanted != event.registered for event in events):
            await tx.enqueue(
                ActivateSource(source.id, orphaned or None), serial_key=registration.serial_key(endpoint.id)
            )


@wqcore.handler
async def activate_source(args: ActivateSource, job: wqcore.Job) -> None:
    """Sends the event that starts the source's registration job, once for this job of the queue.

    Raises wqcore.Discard: the source is gone, or its channel is not HTTP, which is all that this platform serves.
    """
    db = await store.open_store()
    source = await db.row("source_to_register", id=args.id)
    if source is None:
        raise wqcore.Discard(f"there is no source {args.id!r}")
    if source.channel != "HTTP":
        raise wqcore.Discard(f"source {source.key!r} has the channel {source.channel}: this platform serves HTTP only")
    event = activation.event(source, f"{source.id}:{job.id}", orphaned=args.orphaned_events or [])
    await ingest(db, source.environment_id, [event])


@wqcore.handler
async def deliver_http_source_request(args: DeliverHttpSourceRequest, job: wqcore.Job) -> None:
    """Has the endpoint handle a stored request, and takes in the events that it makes of it.

    Raises wqcore.Retry or wqcore.Discard as `calls` does.
    """
    db = await store.open_store()
    delivery = await db.row("delivery_to_make", id=args.id)
    if delivery is None:
        return
    caller = await calls.caller()
    endpoint = calls.Endpoint(url=delivery.endpoint_url, api_key=secrets.unseal(delivery.api_key_sealed))
    answer = await caller.call(
        endpoint,
        "DELIVER_HTTP_SOURCE_REQUEST",
        delivery.body or b"",
        deliveries.Handled,
        headers=deliveries.headers(delivery),
    )
    metadata = None if answer.metadata is msgspec.UNSET else store.json(answer.metadata)
    async with db.transaction() as tx:
        if await tx.row("finish_delivery", id=delivery.id, metadata=metadata) is not None:
            await ingest(tx, delivery.environment_id, deliveries.events(delivery, answer))


@wqcore.handler
async def register_dynamic_trigger(args: RegisterDynamicTrigger, job: wqcore.Job) -> None:
    """Stores the dynamic trigger with exactly the jobs that it names."""
    metadata = declared.read(args.dynamic_trigger, declared.DynamicTriggerMetadata, "dynamicTrigger")
    db = await store.open_store()
    async with db.transaction() as tx:
        endpoint = await registration.endpoint_declaring(tx, args.endpoint_id)
        await registration.dynamic_trigger(tx, endpoint, "EVENT", metadata)


async def register_dynamic(
    tx: store.Transaction,
    environment_id: str,
    client: str,
    trigger_slug: str,
    key: str,
    body: Any,
    *,
    idempotency_key: str | None = None,
) -> dict[str, Any] | None:
    """PUT /api/v2/:client/triggers/:id/registrations/:key: a source that user code adds to a dynamic trigger.

    Args:
        client, trigger_slug, key: slugs of the endpoint and of the dynamic trigger; what user code calls the registration.
        body: decoded JSON, `{rule, source, accountId?}`.
        idempotency_key: of the request; the registration job is asked once for each of them.

    Returns the reply, or None when the environment has no such dynamic trigger. Raises msgspec.ValidationError, which
    names the field.
    """
    declaration = msgspec.convert(body, DynamicRegistration)
    trigger = await tx.row(
        "lock_dynamic_trigger", environment=environment_id, client=client, slug=trigger_slug, type="EVENT"
    )
    if trigger is None:
        return None
    endpoint = await registration.endpoint_declaring(tx, trigger.endpoint_id)
    own_key = f"{trigger.id}:{key}:{declaration.source.key}"
    source, _ = await _put(
        tx,
        endpoint,
        declaration.source,
        own_key,
        register_job=trigger.register_job_id,
        trigger_id=trigger.id,
        registration_key=key,
        account_id=declaration.account_id,
    )
    await registration.dispatcher(tx, environment_id, source.id, "DYNAMIC_TRIGGER", trigger.id, declaration.rule)
    row = await tx.row("source_to_register", id=source.id)
    assert row is not None  # noqa: S101 - it was written above
    event = activation.event(row, f"{source.id}:{idempotency_key or ids.new('reg')}")
    if not source.active:
        await ingest(tx, environment_id, [event])
    return activation.reply(row)


async def update_source(
    on: store.Store | store.Transaction, environment_id: str, client: str, key: str, body: Any
) -> dict[str, Any] | None:
    """PUT /api/v2/:client/sources/:key: the source is active, and its service sends these events.

    `body` is decoded JSON, `{options, secret?, data?}`. Returns the reply, or None when the environment has no such source.
    Raises msgspec.ValidationError, which names the field.
    """
    update = msgspec.convert(body, Update)
    pairs = update.pairs()
    row = await on.row(
        "update_source",
        environment=environment_id,
        client=client,
        key=key,
        names=[name for name, _ in pairs],
        values=[value for _, value in pairs],
        has_data=update.data is not msgspec.UNSET,
        data=store.json(None if update.data is msgspec.UNSET else update.data),
        secret_id=ids.new("sec"),
        sealed=None if update.secret is None else secrets.seal(update.secret),
    )
    return None if row is None else {"id": row.id, "key": row.key}


async def accept_delivery(
    on: store.Store | store.Transaction,
    source_id: str,
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes | None,
) -> str | None:
    """Stores a request that came for a source and enqueues its delivery; its id.

    `url` is the absolute URL that was asked for. None when no source of this id is active or waits for its registration.
    """
    row = await on.row(
        "accept_delivery",
        id=ids.new("dlv"),
        source=source_id,
        url=url,
        method=method,
        headers=store.json(dict(headers)),
        body=body,
    )
    return None if row is None else str(row.id)


async def _put(
    tx: store.Transaction,
    endpoint: store.Row,
    metadata: declared.SourceMetadata,
    key: str,
    *,
    register_job: str | None,
    trigger_id: str | None = None,
    registration_key: str | None = None,
    account_id: str | None = None,
) -> tuple[store.Row, list[store.Row]]:
    """The source's row, and its events as want_source_events.sql returns them."""
    integration = None
    if metadata.integration is not None:
        found = await registration.integrations(tx, endpoint.organization_id, [metadata.integration])
        integration = found[metadata.integration.id]
    source = await tx.row(
        "register_source",
        id=ids.new("src"),
        environment=endpoint.environment_id,
        endpoint=endpoint.id,
        key=key,
        channel=metadata.channel,
        version=metadata.version,
        params=store.json(metadata.params),
        integration=integration,
        dynamic_trigger=trigger_id,
        register_job=register_job,
        registration_key=registration_key,
        account=account_id,
        secret_id=ids.new("sec") if metadata.channel == "HTTP" else None,
        sealed=secrets.seal(token_hex(32)),
    )
    assert source is not None  # noqa: S101 - an upsert returns its row
    wanted = metadata.wanted()
    events = await tx.rows(
        "want_source_events",
        source=source.id,
        names=[name for name, _ in wanted],
        values=[value for _, value in wanted],
    )
    return source, events
