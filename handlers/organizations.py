"""What a new organization gets."""

from __future__ import annotations

import msgspec

import wqcore


@wqcore.kind("organizationCreated", queue="internal-queue", priority=50, max_attempts=3, timeout_s=60)
class OrganizationCreated(msgspec.Struct, frozen=True, rename="camel"):
    """Makes a default project with its environments and keys, and sends a welcome.

    Attributes:
        id (str): the organization.
    """

    id: str
