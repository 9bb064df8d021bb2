"""What the register kinds share: one row for what an endpoint declares, found by its natural key, made if it is not there.

Every statement is an upsert, so that a registration may run any number of times, and two endpoints that register the same job
at once wait for each other instead of doubling it. All go the same way (job, queue, version, integrations by slug,
dispatcher, schedule), so they cannot deadlock. Everything here is part of the caller's transaction: a crash leaves nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

import wqcore
from handlers import ids, store
from handlers.declared import DynamicScheduleMetadata, DynamicTriggerMetadata, EventRule, IntegrationMetadata


def serial_key(endpoint_id: str) -> str:
    """The serial key of everything that follows from one endpoint's index, and of the requests that its sources get."""
    return f"endpoint-{endpoint_id}"


async def endpoint_declaring(on: store.Store | store.Transaction, endpoint_id: str) -> store.Row:
    """The endpoint with its environment, project and organization. Raises wqcore.Discard when it is gone."""
    endpoint = await on.row("endpoint_declaring", id=endpoint_id)
    if endpoint is None:
        raise wqcore.Discard(f"there is no endpoint {endpoint_id!r}")
    return endpoint


async def integrations(
    tx: store.Transaction, organization_id: str, declared: Iterable[IntegrationMetadata]
) -> dict[str, str]:
    """The ids of the integrations of an organization, by slug."""
    by_slug = {integration.id: integration for integration in declared}
    found: dict[str, str] = {}
    for slug in sorted(by_slug):  # in one order, so that two registrations cannot wait for each other
        row = await tx.row(
            "register_integration",
            id=ids.new("int"),
            organization=organization_id,
            slug=slug,
            title=by_slug[slug].metadata.name or slug,
            auth_source=by_slug[slug].auth_source,
        )
        found[slug] = _id(row)
    return found


async def dispatcher(
    tx: store.Transaction,
    environment_id: str,
    key: str,
    kind: str,
    target_id: str,
    rule: EventRule,
    *,
    manual: bool = False,
) -> str:
    """The id of the dispatcher of `key`, which starts `target_id` for the events of `rule`, or only by its schedule."""
    row = await tx.row(
        "register_dispatcher",
        id=ids.new("dsp"),
        environment=environment_id,
        key=key,
        kind=kind,
        target=target_id,
        events=rule.names(),
        source=rule.source,
        payload=store.json(rule.payload),
        context=store.json(rule.context),
        manual=manual,
    )
    return _id(row)


async def registered_job(tx: store.Transaction, endpoint: store.Row, slug: str) -> str | None:
    """The id of a job that is registered in the endpoint's environment."""
    row = await tx.row("job_by_slug", environment=endpoint.environment_id, project=endpoint.project_id, slug=slug)
    return None if row is None else _id(row)


async def dynamic_trigger(
    tx: store.Transaction, endpoint: store.Row, kind: str, metadata: DynamicTriggerMetadata | DynamicScheduleMetadata
) -> str:
    """The id of a dynamic trigger (kind EVENT) or dynamic schedule (SCHEDULE), connected with its jobs."""
    hidden = metadata.register_source_job if isinstance(metadata, DynamicTriggerMetadata) else None
    row = await tx.row(
        "register_dynamic_trigger",
        id=ids.new("dyn"),
        endpoint=endpoint.id,
        environment=endpoint.environment_id,
        project=endpoint.project_id,
        slug=metadata.id,
        type=kind,
        register_job=await registered_job(tx, endpoint, hidden.id) if hidden else None,
        jobs=[job.id for job in metadata.jobs],
    )
    return _id(row)


def _id(row: store.Row) -> str:
    return str(row.id)
