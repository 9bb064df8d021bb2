"""External sources of events: stored, activated by the endpoint's own hidden job, and their requests delivered."""

from __future__ import annotations

from typing import Any

import msgspec

import wqcore


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
