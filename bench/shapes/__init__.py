"""The shapes of load, in the order of a report; each file says what its numbers mean."""

from __future__ import annotations

from collections.abc import Callable

from ..plan import Bench, Shape
from . import beside, drain, idle, inserts, latency, order, scale, steady, tables, waiting

SHAPES: dict[str, Callable[[Bench], Shape]] = {
    "drain": drain.shape,
    "steady": steady.shape,
    "bulk_insert": inserts.bulk,
    "single_insert": inserts.single,
    "latency_idle": latency.idle,
    "latency_half_load": latency.half_load,
    "priorities": order.priorities,
    "serial_keys": order.keys,
    "blocked_keys": order.blocked,
    "async_jobs": waiting.shape,
    "old_snapshot": beside.snapshot,
    "idle_writer": beside.writer,
    "readers": beside.scans,
    "snapshot_slope": beside.slope,
    "scale": scale.shape,
    "history_rows": tables.history,
    "future_jobs": tables.future,
    "idle": idle.shape,
}
QUICK = ("drain", "steady", "bulk_insert", "single_insert", "latency_idle", "idle")
"""What the quick mode measures."""
