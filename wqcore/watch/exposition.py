"""Every metric of a master, with its type, labels and meaning; and the collector that reads them off the shared memory.

A scrape reads words and asks nobody. Labels are bounded: queues are those of the configuration, kinds those of the catalog,
everything else "other"; no ids, args or texts. Metrics that nobody could measure are left out, rather than shown as they were.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from prometheus_client import Metric as Family
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from wqcore import clock
from wqcore.proc.board import BOOT, DRAINING, FREE, WORKING, Board
from wqcore.settings import Settings
from wqcore.version import VERSION
from wqcore.watch import page as layout
from wqcore.watch.health import Health
from wqcore.watch.page import Page
from wqcore.watch.survey import Seen

Type = Literal["counter", "gauge", "histogram"]


class Metric(NamedTuple):
    """One metric. The name is that of the samples, but for a histogram's endings."""

    name: str
    type: Type
    labels: tuple[str, ...]
    help: str


_KIND, _QUEUE = ("queue", "kind"), ("queue",)

METRICS = (
    Metric("wqcore_up", "gauge", (), "1 while master and keeper turn, as /livez has it"),
    Metric("wqcore_ready", "gauge", (), "1 while jobs can be fetched, as /readyz has it"),
    Metric("wqcore_build_info", "gauge", ("version", "python"), "1; what runs is in the labels"),
    Metric("wqcore_jobs_total", "counter", (*_KIND, "outcome"), "Jobs that ended in a worker, by outcome"),
    Metric("wqcore_attempts_total", "counter", _KIND, "Runs that ended and count as an attempt"),
    Metric("wqcore_retries_total", "counter", _KIND, "Runs after which the job runs again, because they failed"),
    Metric("wqcore_snoozes_total", "counter", _KIND, "Runs after which the job runs again, because they asked for it"),
    Metric("wqcore_interrupted_total", "counter", _KIND, "Runs cut short by a drain or a lost lease; they count for nothing"),
    Metric("wqcore_timeouts_total", "counter", _KIND, "Runs cancelled because their time was up; retries or outcomes, too"),
    Metric("wqcore_stuck_total", "counter", _QUEUE, "Runs that did not end within cancel_grace_s of their cancellation"),
    Metric("wqcore_job_duration_seconds", "histogram", _KIND, "How long runs took, whatever became of them"),
    Metric("wqcore_job_wait_seconds", "histogram", _KIND,
           "From when a job could run to its start; of busy turns a sample, counted in full"),
    Metric("wqcore_turn_duration_seconds", "histogram", _QUEUE, "How long a turn took: outcomes written, jobs claimed"),
    Metric("wqcore_turn_fetched_jobs", "histogram", _QUEUE, "Jobs that a turn claimed"),
    Metric("wqcore_turn_acknowledged_jobs", "histogram", _QUEUE, "Outcomes that a turn wrote"),
    Metric("wqcore_loop_lag_seconds", "histogram", _QUEUE, "How much too late a worker's event loop came back to a timer"),
    Metric("wqcore_running", "gauge", _QUEUE, "Jobs that run"),
    Metric("wqcore_prefetched", "gauge", _QUEUE, "Jobs that workers hold and have not started"),
    Metric("wqcore_seats", "gauge", _QUEUE, "Jobs that could run at a time: the workers of the configuration"),
    Metric("wqcore_places", "gauge", _QUEUE, "Worker processes that there should be"),
    Metric("wqcore_workers", "gauge", (*_QUEUE, "state"), "Worker processes that there are: boot, working or draining"),
    Metric("wqcore_worker_restarts_total", "counter", (*_QUEUE, "cause"), "Worker processes that had to be replaced"),
    Metric("wqcore_keeper_restarts_total", "counter", ("cause",), "Keepers that had to be replaced"),
    Metric("wqcore_rescues_total", "counter", (*_QUEUE, "cause"), "Shards whose jobs this master's keeper has given back"),
    Metric("wqcore_rescued_jobs_total", "counter", (*_QUEUE, "result"),
           "Jobs of rescued shards: held, of which had started and run again, or were discarded"),
    Metric("wqcore_reconnects_total", "counter", _QUEUE, "Times that a worker lost its connection or gave it up"),
    Metric("wqcore_keeper_reconnects_total", "counter", (), "The same of the keeper"),
    Metric("wqcore_fenced_total", "counter", _QUEUE, "Workers that found their lease gone"),
    Metric("wqcore_lease_doubts_total", "counter", _QUEUE, "Times that a worker cancelled its runs, its lease being unproved"),
    Metric("wqcore_waiting", "gauge", _QUEUE,
           "Jobs of the whole queue that could run and that nobody holds; of ready and of due ones at most 100,000 count"),
    Metric("wqcore_scheduled", "gauge", _QUEUE, "Jobs of the whole queue whose time has not come; at most 100,000 count"),
    Metric("wqcore_oldest_waiting_seconds", "gauge", _QUEUE, "How long the oldest of the waiting jobs has waited; 0: none does"),
    Metric("wqcore_shards", "gauge", _QUEUE, "Worker processes of the whole queue, over all hosts"),
    Metric("wqcore_queue_paused", "gauge", _QUEUE, "1 while the queue is paused"),
    Metric("wqcore_memory_pss_bytes", "gauge", ("role", "queue"),
           "Memory of master, keeper and workers, shared pages divided among those that share them"),
    Metric("wqcore_memory_uss_bytes", "gauge", ("role", "queue"), "Memory that is of no other process"),
    Metric("wqcore_beat_age_seconds", "gauge", (), "Since this master's last heartbeat that went through"),
    Metric("wqcore_survey_age_seconds", "gauge", (), "Since the last look at what is asked every watch.survey_interval_s"),
    Metric("wqcore_survey_duration_seconds", "gauge", (), "How long that look took"),
    Metric("wqcore_database_up", "gauge", (), "1 when the last look reached the database"),
    Metric("wqcore_database_oldest_snapshot_seconds", "gauge", (), "Age of the oldest transaction that holds a snapshot"),
    Metric("wqcore_database_oldest_snapshot_xids", "gauge", (), "Transactions since; replication slots count, too"),
    Metric("wqcore_database_hidden_sessions", "gauge", (), "Sessions whose snapshots the user may not see (pg_read_all_stats)"),
    Metric("wqcore_database_notify_queue_ratio", "gauge", (), "How full the queue of notifications is, 0 to 1"),
    Metric("wqcore_database_connections", "gauge", (), "Connections to the server"),
    Metric("wqcore_database_connections_max", "gauge", (), "max_connections of the server"),
    Metric("wqcore_database_job_ids_total", "counter", (),
           "Ids drawn for jobs: inserts of all clients, and those that were rolled back"),
    Metric("wqcore_database_live_rows", "gauge", ("table",), "Rows, as statistics have it"),
    Metric("wqcore_database_dead_rows", "gauge", ("table",), "Dead rows that no vacuum has removed, as statistics have it"),
    Metric("wqcore_database_table_bytes", "gauge", ("table",), "Size with indexes"),
    Metric("wqcore_database_vacuum_age_seconds", "gauge", ("table",), "Since the last vacuum; left out when there was none"),
)  # fmt: skip

_FAMILIES: dict[Type, type[CounterMetricFamily] | type[GaugeMetricFamily]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
}
_STATES = {BOOT: "boot", WORKING: "working", DRAINING: "draining"}


class MasterCollector(Collector):
    """Reads everything at each scrape.

    Args:
        homes: kind → its queue, of kinds that are shown there before their first job; empty when nobody knows them.
        beat_at: when the last heartbeat went through (monotonic s); 0: none has.
        seen: what the last survey found.
    """

    def __init__(
        self,
        settings: Settings,
        board: Board,
        page: Page,
        health: Health,
        *,
        homes: Mapping[str, str],
        beat_at: Callable[[], float],
        seen: Callable[[], Seen],
    ) -> None:
        self._settings = settings
        self._board = board
        self._page = page
        self._health = health
        self._homes = homes
        self._beat_at = beat_at
        self._seen = seen

    def collect(self) -> Iterator[Family]:
        families: dict[str, Family] = {}
        for metric in METRICS:
            if metric.type == "histogram":
                families[metric.name] = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
            else:
                families[metric.name] = _FAMILIES[metric.type](metric.name, metric.help, labels=metric.labels)
        for sample in (*self._master(), *self._workers(), *self._work(), *self._keeper(), *self._survey()):
            family, labels, value = families[f"wqcore_{sample[0]}"], sample[1], sample[2]
            if isinstance(value, tuple):
                bounds, total = value
                family.add_metric(labels, [(_le(bound), count) for bound, count in bounds], total)  # type: ignore[attr-defined]
            else:
                family.add_metric(labels, value)  # type: ignore[attr-defined]
        return (family for family in families.values() if family.samples)

    def _master(self) -> Iterator[_Sample]:
        yield _Sample("up", (), float(not any(check.problem for check in self._health.live())))
        yield _Sample("ready", (), float(not any(check.problem for check in self._health.ready())))
        yield _Sample("build_info", (VERSION, platform.python_version()), 1)
        for queue, cause, count in self._page.restarts():
            if queue is None:
                yield _Sample("keeper_restarts_total", (cause,), count)
            else:
                yield _Sample("worker_restarts_total", (queue, cause), count)

    def _workers(self) -> Iterator[_Sample]:
        """What there is at this moment, by queue."""
        queues = self._settings.queues_here()
        gauges = {(queue, what): 0 for queue in queues for what in ("running", "prefetched", *_STATES.values())}
        for sheet, segment in zip(self._board.sheets, self._page.segments, strict=True):
            place = segment.header[layout.PLACE]
            if not sheet.seats or not place or sheet.state == FREE:
                continue
            queue = self._page.places[place - 1].rpartition("/")[0]
            gauges[queue, _STATES[sheet.state]] += 1
            gauges[queue, "running"] += len(sheet.running())
            gauges[queue, "prefetched"] += segment.header[layout.CLAIMED]
        for (queue, what), count in gauges.items():
            if what in ("running", "prefetched"):
                yield _Sample(what, (queue,), count)
            else:
                yield _Sample("workers", (queue, what), count)
        for name, limits in queues.items():
            yield _Sample("seats", (name,), limits.workers)
            yield _Sample("places", (name,), limits.process_count())

    def _work(self) -> Iterator[_Sample]:
        """What the workers have counted."""
        for queue, words, kinds in self._page.totals():
            for name, word in (("reconnects", layout.RECONNECTS), ("fenced", layout.FENCED),
                               ("lease_doubts", layout.DOUBTED), ("stuck", layout.STUCK)):  # fmt: skip
                yield _Sample(f"{name}_total", (queue,), words[word])
            yield _Sample("turn_duration_seconds", (queue,), layout.buckets(words, layout.TURN, layout.TURN_S))
            for name, at in (("fetched", layout.FETCHED), ("acknowledged", layout.ACKNOWLEDGED)):
                bounds, total = layout.buckets(words, at, layout.BATCH_JOBS)
                yield _Sample(f"turn_{name}_jobs", (queue,), (bounds, total))
            yield _Sample("loop_lag_seconds", (queue,), layout.buckets(words, layout.LAG, layout.LAG_S))
            for kind, block in kinds.items():
                if any(block) or self._homes.get(kind) == queue:
                    yield from _kind((queue, kind), block)

    def _keeper(self) -> Iterator[_Sample]:
        yield _Sample("keeper_reconnects_total", (), self._page.keeper_reconnected)
        for queue, causes, jobs in self._page.rescues():
            if queue != layout.OTHER or any(causes.values()):
                yield from (_Sample("rescues_total", (queue, cause), count) for cause, count in causes.items())
                yield from (_Sample("rescued_jobs_total", (queue, what), count) for what, count in jobs.items())
        beat_at = self._beat_at()
        if beat_at:
            yield _Sample("beat_age_seconds", (), clock.monotonic() - beat_at)

    def _survey(self) -> Iterator[_Sample]:
        seen = self._seen()
        if not seen.at:
            return
        yield _Sample("survey_age_seconds", (), clock.monotonic() - seen.at)
        yield _Sample("survey_duration_seconds", (), seen.took_s)
        yield _Sample("database_up", (), float(seen.database is not None))
        for (role, queue), (pss, uss) in seen.memory.items():
            yield _Sample("memory_pss_bytes", (role, queue), pss)
            yield _Sample("memory_uss_bytes", (role, queue), uss)
        for queue, row in seen.queues.items():
            yield _Sample("waiting", (queue,), max(0, row["ready"] + row["due"] - row["held"]))
            yield _Sample("scheduled", (queue,), row["scheduled"])
            yield _Sample("oldest_waiting_seconds", (queue,), row["oldest_s"])
            yield _Sample("shards", (queue,), row["shards"])
            yield _Sample("queue_paused", (queue,), float(row["paused"]))
        for name, column in _OF_DATABASE.items() if seen.database is not None else ():
            yield _Sample(f"database_{name}", (), float((seen.database or {})[column]))
        for table in seen.tables:
            for name, column in _OF_TABLE.items():
                if table[column] is not None:
                    yield _Sample(f"database_{name}", (table["name"],), float(table[column]))


_OF_DATABASE = {
    "oldest_snapshot_seconds": "oldest_snapshot_s", "oldest_snapshot_xids": "oldest_snapshot_xids",
    "hidden_sessions": "hidden_sessions", "notify_queue_ratio": "notify_queue", "connections": "connections",
    "connections_max": "connections_max", "job_ids_total": "job_ids",
}  # fmt: skip
_OF_TABLE = {
    "live_rows": "live_rows", "dead_rows": "dead_rows", "table_bytes": "bytes", "vacuum_age_seconds": "vacuum_age_s",
}  # fmt: skip


class _Sample(NamedTuple):
    """A sample of `wqcore_<name>`: its labels' values in their order, and a number or (buckets, sum)."""

    name: str
    labels: Sequence[str]
    value: float | tuple[list[tuple[float, int]], float]


def _le(bound: float) -> str:
    return "+Inf" if bound == math.inf else repr(bound)


def _kind(labels: Sequence[str], block: Sequence[int]) -> Iterable[_Sample]:
    """What became of the runs of a kind on a queue, and how long they took and waited."""
    ended = {"completed": layout.COMPLETED, "cancelled": layout.CANCELLED, "discarded": layout.DISCARDED}
    for outcome, word in ended.items():
        yield _Sample("jobs_total", (*labels, outcome), block[word])
    for name, word in (("attempts", layout.ATTEMPTS), ("retries", layout.RETRIED), ("snoozes", layout.SNOOZED),
                       ("interrupted", layout.INTERRUPTED), ("timeouts", layout.TIMED_OUT)):  # fmt: skip
        yield _Sample(f"{name}_total", labels, block[word])
    yield _Sample("job_duration_seconds", labels, layout.buckets(block, layout.DURATION, layout.DURATION_S))
    yield _Sample("job_wait_seconds", labels, layout.buckets(block, layout.WAIT, layout.WAIT_S))
