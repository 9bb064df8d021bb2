"""An endpoint (a user's web server with the SDK) is asked what it holds, and what it holds is stored.

Protocol: indexEndpoint asks; in one transaction it records the index, turns off what the endpoint declares no longer, and
enqueues a registration for each part. These run one after the other (serial key `endpoint-<id>`), jobs first: a source or
dynamic trigger refers to them. A registration takes the place of the one of an older index that still waits (job key), so the
newest wins.

A crash before a commit leaves nothing. indexEndpoint after its commit asks the endpoint again and changes nothing more (one
endpoint_index a job); registerJob is upserts, and leaves a schedule's next tick as it is.
"""

from __future__ import annotations

import hashlib
import logging
from typing import Any, Literal

import msgspec

import wqcore
from handlers import calls, declared, ids, registration, schedules, secrets, store
from handlers.declared import Index, JobMetadata
from handlers.runs import StartQueuedRuns
from handlers.schedules import RegisterDynamicSchedule
from handlers.sources import RegisterDynamicTrigger, RegisterSource

logger = logging.getLogger(__name__)

DEFAULT_QUEUE = "default"
JOBS_MAX = 100
"""How many runs of a queue may be under way when nothing else is declared, and at most."""


@wqcore.kind("indexEndpoint", queue="internal-queue", max_attempts=3, timeout_s=300)
class IndexEndpoint(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Asks an endpoint for its jobs, sources, dynamic triggers and dynamic schedules.

    Attributes:
        id (str): the endpoint.
        source (str | None): who wanted it: MANUAL, API, INTERNAL or HOOK.
        source_data (any JSON): what that source knows about it.
        reason (str | None): for people.
    """

    id: str
    source: Literal["MANUAL", "API", "INTERNAL", "HOOK"] | None = None
    source_data: Any = None
    reason: str | None = None


@wqcore.kind("registerJob", queue="default", max_attempts=3, timeout_s=60)
class RegisterJob(msgspec.Struct, frozen=True, rename="camel"):
    """Stores a job of an endpoint, its version, and its trigger.

    Attributes:
        endpoint_id (str): the endpoint that declares it.
        job (dict): its metadata, as the endpoint sent it.
    """

    endpoint_id: str
    job: dict[str, Any]


@wqcore.handler
async def index_endpoint(args: IndexEndpoint, job: wqcore.Job) -> None:
    """Calls INDEX_ENDPOINT, records what the endpoint holds, and enqueues the registration of each part.

    Raises:
        wqcore.Discard: no such endpoint, it refused (4xx except 408), or its answer does not fit; the field is named.
        wqcore.Retry: it did not answer, or with 5xx or 408.
    """
    db = await store.open_store()
    endpoint = await registration.endpoint_declaring(db, args.id)
    caller = await calls.caller()
    address = calls.Endpoint(url=endpoint.url, api_key=secrets.unseal(endpoint.api_key_sealed))
    answer: dict[str, Any] = await caller.call(address, "INDEX_ENDPOINT", b"{}", dict)
    index = declared.read(answer, Index, f"the answer to INDEX_ENDPOINT from {endpoint.url}")
    stats = _stats(index)
    async with db.transaction() as tx:
        if await _record(tx, args, job, stats):
            await _retire(tx, endpoint.id, index)
            for key, registration_args in _registrations(endpoint.id, answer):
                try:
                    await tx.enqueue(registration_args, serial_key=registration.serial_key(endpoint.id), job_key=key)
                except wqcore.ArgsTooLarge as error:  # a payload schema of hundreds of kilobytes stays as large
                    raise wqcore.Discard(f"endpoint {endpoint.slug!r}: {error}") from error
    logger.info(
        "endpoint %s indexed: %d jobs (%d enabled), %d sources, %d dynamicTriggers, %d dynamicSchedules",
        args.id,
        *stats.values(),
        extra={"job_id": job.id, "endpoint_id": args.id},
    )


@wqcore.handler
async def register_job(args: RegisterJob, job: wqcore.Job) -> None:
    """Stores the job, its version as `latest`, its queue and integrations, and what starts it; off when it is disabled.

    Raises wqcore.Discard: the endpoint is gone, or the metadata does not fit.
    """
    metadata = declared.read(args.job, JobMetadata, "job")
    trigger: declared.Trigger = declared.read(metadata.trigger, declared.Trigger, f"trigger of {metadata.id!r}")  # type: ignore[arg-type]
    db = await store.open_store()
    async with db.transaction() as tx:
        endpoint = await registration.endpoint_declaring(tx, args.endpoint_id)
        environment = {"environment": endpoint.environment_id}
        if not metadata.enabled:
            known = await tx.row("disable_job", project=endpoint.project_id, slug=metadata.id, **environment)
            if known is not None:
                await tx.rows("stop_job", job=known.job_id, **environment)
            return
        job_id = await _store_job(tx, endpoint, metadata)
        await _store_version(tx, endpoint, job_id, metadata)
        await _store_trigger(tx, endpoint, job_id, trigger)


async def _record(tx: store.Transaction, args: IndexEndpoint, job: wqcore.Job, stats: dict[str, int]) -> bool:
    """Whether this job had not been recorded before."""
    row = await tx.row(
        "record_index",
        id=ids.new("idx"),
        endpoint=args.id,
        wq_job=job.id,
        source=args.source,
        source_data=store.json(args.source_data),
        reason=args.reason,
        stats=store.json(stats),
    )
    return row is not None


def _stats(index: Index) -> dict[str, int]:
    return {
        "jobs": len(index.jobs),
        "enabledJobs": sum(found.enabled for found in index.jobs),
        "sources": len(index.sources),
        "dynamicTriggers": len(index.dynamic_triggers),
        "dynamicSchedules": len(index.dynamic_schedules),
    }


async def _retire(tx: store.Transaction, endpoint_id: str, index: Index) -> None:
    triggers = [("EVENT", trigger.id) for trigger in index.dynamic_triggers]
    triggers += [("SCHEDULE", schedule.id) for schedule in index.dynamic_schedules]
    await tx.rows(
        "retire_undeclared",
        endpoint=endpoint_id,
        jobs=[found.id for found in index.jobs if found.enabled],
        sources=[source.key for source in index.sources],
        trigger_types=[type_ for type_, _ in triggers],
        trigger_slugs=[slug for _, slug in triggers],
    )


def _registrations(endpoint_id: str, answer: dict[str, Any]) -> list[tuple[str, msgspec.Struct]]:
    """The jobs that follow from an index, with their job keys. `answer` fits Index; its parts are passed on as sent."""
    parts: list[tuple[str, str, msgspec.Struct]] = [
        *(("job", found["id"], RegisterJob(endpoint_id, found)) for found in answer["jobs"] if found["enabled"]),
        *(("source", found["key"], RegisterSource(endpoint_id, found)) for found in answer.get("sources", [])),
        *(
            ("trigger", found["id"], RegisterDynamicTrigger(endpoint_id, found))
            for found in answer.get("dynamicTriggers", [])
        ),
        *(
            ("schedule", found["id"], RegisterDynamicSchedule(endpoint_id, found))
            for found in answer.get("dynamicSchedules", [])
        ),
    ]
    # hashed, because a job key has 128 bytes at most and users choose these names
    return [
        (f"register-{part}:{endpoint_id}:{hashlib.sha256(name.encode()).hexdigest()[:32]}", args)
        for part, name, args in parts
    ]


async def _store_job(tx: store.Transaction, endpoint: store.Row, metadata: JobMetadata) -> str:
    row = await tx.row(
        "register_job",
        id=ids.new("job"),
        project=endpoint.project_id,
        slug=metadata.id,
        title=metadata.name,
        internal=metadata.internal,
    )
    assert row is not None  # noqa: S101 - an upsert returns its row
    return str(row.id)


async def _store_version(tx: store.Transaction, endpoint: store.Row, job_id: str, metadata: JobMetadata) -> None:
    used = declared.read(
        metadata.integrations, dict[str, declared.IntegrationMetadata], f"integrations of {metadata.id!r}"
    )
    event = dict(metadata.event)
    version = await tx.row(
        "register_version",
        id=ids.new("ver"),
        job=job_id,
        environment=endpoint.environment_id,
        endpoint=endpoint.id,
        queue=await _store_queue(tx, endpoint, metadata),
        version=metadata.version,
        examples=store.json(event.pop("examples", None) or []),
        event=store.json(event),
        trigger=store.json(metadata.trigger),
        start_position=metadata.start_position,
        preprocess_runs=metadata.preprocess_runs,
    )
    assert version is not None  # noqa: S101 - an upsert returns its row
    found = await registration.integrations(tx, endpoint.organization_id, used.values())
    await tx.rows(
        "set_job_integrations",
        version=version.id,
        keys=list(used),
        integrations=[found[integration.id] for integration in used.values()],
    )


async def _store_queue(tx: store.Transaction, endpoint: store.Row, metadata: JobMetadata) -> str:
    name, max_jobs = queue_of(metadata)
    row = await tx.row(
        "register_queue", id=ids.new("que"), environment=endpoint.environment_id, name=name, max_jobs=max_jobs
    )
    assert row is not None  # noqa: S101 - an upsert returns its row
    if row.raised:
        await tx.enqueue(StartQueuedRuns(row.id))
    return str(row.id)


def queue_of(metadata: JobMetadata) -> tuple[str, int]:
    """The name of a job's queue and how many runs of it may be under way.

    `concurrencyLimit` of SDK 2.3: a number makes a queue of this job alone, `{id, limit}` one for all that name it. `queue` of
    older SDKs: a name, or `{name, maxConcurrent}`.
    """
    limit, queue = metadata.concurrency_limit, metadata.queue
    name, max_jobs = DEFAULT_QUEUE, None
    if isinstance(limit, int):
        name, max_jobs = f"job:{metadata.id}", limit
    elif limit is not None:
        name, max_jobs = limit.id, limit.limit
    elif isinstance(queue, str):
        name = queue
    elif queue is not None:
        name, max_jobs = queue.name, queue.max_concurrent
    if name == DEFAULT_QUEUE:  # everybody's: no single job may narrow it
        max_jobs = None
    return name, JOBS_MAX if max_jobs is None else min(max(max_jobs, 1), JOBS_MAX)


async def _store_trigger(tx: store.Transaction, endpoint: store.Row, job_id: str, trigger: declared.Trigger) -> None:
    environment_id = endpoint.environment_id
    match trigger:
        case declared.ScheduledTrigger(schedule):
            await schedules.schedule_job(tx, environment_id, job_id, schedule)
            return
        case declared.DynamicTrigger(slug):
            await tx.rows("join_dynamic_trigger", job=job_id, endpoint=endpoint.id, slug=slug)
    # what it had before; a dispatcher that it still has is enabled again
    await tx.rows("stop_job", job=job_id, environment=environment_id)
    if isinstance(trigger, declared.StaticTrigger):
        await registration.dispatcher(tx, environment_id, job_id, "JOB_VERSION", job_id, trigger.rule)
