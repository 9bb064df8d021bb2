"""Deployments of linked projects."""

from __future__ import annotations

import msgspec

import wqcore


@wqcore.kind("startInitialProjectDeployment", queue="internal-queue", priority=50, max_attempts=3, timeout_s=600)
class StartInitialProjectDeployment(msgspec.Struct, frozen=True, rename="camel"):
    """Makes the first deployment of a project that was linked.

    Attributes:
        id (str): the project.
    """

    id: str
