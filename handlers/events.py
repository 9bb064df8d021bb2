"""An event that was received reaches every dispatcher whose filters match, and each dispatcher makes its runs."""

from __future__ import annotations

import msgspec

import wqcore


@wqcore.kind("deliverEvent", queue="event-dispatcher", max_attempts=3, timeout_s=120)
class DeliverEvent(msgspec.Struct, frozen=True, rename="camel"):
    """Finds the dispatchers that match an event.

    Attributes:
        id (str): the event record.
    """

    id: str


@wqcore.kind("events.invokeDispatcher", queue="default", max_attempts=3, timeout_s=30)
class InvokeDispatcher(msgspec.Struct, frozen=True, rename="camel"):
    """Makes the runs of one dispatcher for one event.

    Attributes:
        id (str): the dispatcher.
        event_record_id (str): the event.
    """

    id: str
    event_record_id: str
