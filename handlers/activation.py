"""The event that asks an endpoint's registration job to register a source, as the SDK's schemas describe it.

Pure: from the row of source_to_register.sql to the event or the reply. A source that is not active yet wants all of its
events (`desired`); for an active one `desired` is what its service sends and shall go on sending, `missing` what it shall send
too, `orphaned` what it shall send no longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from handlers import platform, secrets, store
from handlers.ingest import Event

REGISTER_EVENTS = {"1": "dev.trigger.source.register", "2": "dev.trigger.source.register.v2"}


def event(source: store.Row, event_id: str, *, orphaned: Sequence[str] = ()) -> Event:
    """The event for a source's registration job; `orphaned` are further events that are wanted no longer."""
    if source.version == "2":
        payload = reply(source, orphaned=orphaned)
    else:
        diff = _options(source, orphaned)["event"]
        payload = {
            "id": source.id,
            "source": _source(source),
            "events": diff["desired"],
            "missingEvents": diff["missing"],
            "orphanedEvents": diff["orphaned"],
        }
    if source.dynamic_trigger_slug is not None:
        payload["dynamicTriggerId"] = source.dynamic_trigger_slug
    return Event(id=event_id, name=REGISTER_EVENTS[source.version], payload=payload)


def reply(source: store.Row, *, orphaned: Sequence[str] = ()) -> dict[str, Any]:
    """The payload of version 2, which is also the reply to a registration on a dynamic trigger."""
    return {"id": source.id, "source": _source(source), "options": _options(source, orphaned)}


def _source(source: store.Row) -> dict[str, Any]:
    found = {
        "key": source.key,
        "params": source.params,
        "active": source.active,
        "secret": "" if source.value_sealed is None else secrets.unseal(source.value_sealed),
        "channel": {"type": "HTTP", "url": f"{platform.settings().public_url}/api/v1/sources/http/{source.id}"},
    }
    # Left out when there is none: the SDK's schema takes no null for them.
    found |= {} if source.channel_data is None else {"data": source.channel_data}
    found |= {} if source.client_id is None else {"clientId": source.client_id}
    return found


def _options(source: store.Row, orphaned: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """The differences by option; `event` is always there, because the schema requires it."""
    found: dict[str, dict[str, list[str]]] = {"event": {"desired": [], "missing": [], "orphaned": []}}
    for given in source.events:
        diff = found.setdefault(given["name"], {"desired": [], "missing": [], "orphaned": []})
        if not given["wanted"]:
            diff["orphaned"].append(given["value"])
        elif source.active and not given["registered"]:
            diff["missing"].append(given["value"])
        else:
            diff["desired"].append(given["value"])
    known = {given["value"] for given in source.events if given["name"] == "event"}
    found["event"]["orphaned"] += [value for value in orphaned if value not in known]
    return found
