"""Machines that run deployments."""

from __future__ import annotations

import msgspec

import wqcore


@wqcore.kind("stopVM", queue="internal-queue", priority=50, max_attempts=3, timeout_s=120)
class StopVM(msgspec.Struct, frozen=True, rename="camel"):
    """Stops a machine and records its state.

    Attributes:
        id (str): the vm.
    """

    id: str
