"""Connections to other services: made, missed, and their tokens kept fresh."""

from __future__ import annotations

import msgspec

import wqcore


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
