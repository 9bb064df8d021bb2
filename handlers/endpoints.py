"""An endpoint (a user's web server with the SDK) is asked what it holds, and what it holds is stored.

indexEndpoint changes nothing yet, here or there, so it may run any number of times. The jobs that follow from an index
(registerJob, registerSource, registerDynamicTrigger, registerDynamicSchedule) and its record come with the platform's
state tables; until then the endpoint's URL and key come from the settings.
"""

from __future__ import annotations

import logging
from typing import Any, Literal

import msgspec

import wqcore
from handlers import calls

logger = logging.getLogger(__name__)

endpoints = wqcore.settings_for("endpoints", dict[str, calls.Endpoint])


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


class JobVersion(msgspec.Struct, frozen=True, rename="camel"):
    """Names one version of one job."""

    id: str
    version: str


class JobMetadata(msgspec.Struct, frozen=True, rename="camel"):
    """A job as its endpoint describes it; `event`, `trigger` and `integrations` are kept as sent."""

    id: str
    name: str
    version: str
    event: dict[str, Any]
    trigger: dict[str, Any]
    enabled: bool
    integrations: dict[str, Any] = {}
    internal: bool = False
    start_position: str = "latest"
    preprocess_runs: bool = False
    queue: str | dict[str, Any] | None = None


class SourceMetadata(msgspec.Struct, frozen=True, rename="camel"):
    """A source of external events; version 1 lists `events`, version 2 has `options`. Older SDKs send no version."""

    channel: str
    key: str
    version: str = "1"
    integration: dict[str, Any] = {}
    params: Any = None
    events: list[str] = []
    options: dict[str, list[str]] = {}
    register_source_job: JobVersion | None = None


class DynamicTriggerMetadata(msgspec.Struct, frozen=True, rename="camel"):
    """A trigger that the user's code registers at run time, and the jobs that it starts."""

    id: str
    jobs: list[JobVersion]
    register_source_job: JobVersion | None = None


class DynamicScheduleMetadata(msgspec.Struct, frozen=True, rename="camel"):
    """A schedule that the user's code registers at run time, and the jobs that it starts."""

    id: str
    jobs: list[JobVersion]


class Index(msgspec.Struct, frozen=True, rename="camel"):
    """What an endpoint holds: the answer to INDEX_ENDPOINT. Fields that are not named here are ignored."""

    jobs: list[JobMetadata]
    sources: list[SourceMetadata] = []
    dynamic_triggers: list[DynamicTriggerMetadata] = []
    dynamic_schedules: list[DynamicScheduleMetadata] = []


@wqcore.handler
async def index_endpoint(args: IndexEndpoint, job: wqcore.Job) -> None:
    """Calls INDEX_ENDPOINT at the endpoint of `[app.endpoints.<id>]` (`url`, `api_key`) and logs what it holds.

    Raises:
        wqcore.Discard: no such endpoint, it refused (4xx except 408), or its answer does not fit; the field is named.
        wqcore.Retry: it did not answer, or with 5xx or 408.
        wqcore.ConfigError: `[app.endpoints]` or `[app.http]` is wrong.
    """
    endpoint = _endpoint(args.id)
    caller = await calls.caller()
    index = await caller.call(endpoint, "INDEX_ENDPOINT", b"{}", Index)
    logger.info(
        "endpoint %s indexed: %d jobs (%d enabled), %d sources, %d dynamicTriggers, %d dynamicSchedules",
        args.id,
        len(index.jobs),
        sum(found.enabled for found in index.jobs),
        len(index.sources),
        len(index.dynamic_triggers),
        len(index.dynamic_schedules),
        extra={"job_id": job.id, "endpoint_id": args.id},
    )


def _endpoint(endpoint_id: str) -> calls.Endpoint:
    endpoint = endpoints().get(endpoint_id)
    if endpoint is None:
        raise wqcore.Discard(f"no endpoint {endpoint_id!r}: add [app.endpoints.{endpoint_id}] with url and api_key")
    return endpoint
