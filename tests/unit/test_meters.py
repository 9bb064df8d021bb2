"""What is counted is what happened: by the right name, once, and never less than before."""

from __future__ import annotations

import asyncio
import math
import os
import random
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

import wqcore
from tests.fix_room import Room, row
from wqcore.job import Row
from wqcore.line.settle import Outcomes
from wqcore.proc.board import WORKING, Board
from wqcore.settings import Database, Queue, Settings
from wqcore.watch import page as layout
from wqcore.watch.exposition import METRICS, MasterCollector
from wqcore.watch.health import Health
from wqcore.watch.meters import WAITS_A_TURN, Meter
from wqcore.watch.page import Page
from wqcore.watch.survey import Seen

DOCS = Path(wqcore.__file__).parents[1] / "docs/howto/metrics-and-health.md"
ODD = 'o"dd\\ \n'


class Watched:
    """A page with its board and what is exposed of them, of queue `q` with two places and an odd queue with one."""

    def __init__(self, kinds: list[str] | None) -> None:
        queues = {"q": Queue(workers=4, processes=2), ODD: Queue(workers=3)}
        self.settings = Settings(database=Database(dsn="x"), queues=queues)
        self.places = ["q/0", "q/1", f"{ODD}/0"]
        self.board = Board([2, 2, 3, 2, 2, 3, 0, 0])
        self.page = Page(queues=list(queues), places=self.places, kinds=kinds, segments=len(self.board.sheets))
        health = Health(
            self.settings.process, self.board, self.page, self.board.sheets[-1],
            beat_at=lambda: 0.0, versions=lambda: (3, 3),
        )  # fmt: skip
        self.seen = Seen()
        self.registry = CollectorRegistry()
        self.registry.register(
            MasterCollector(
                self.settings, self.board, self.page, health,
                homes={"works": "q"}, beat_at=lambda: 0.0, seen=lambda: self.seen,
            )
        )  # fmt: skip

    def meter(self, room: Room, segment: int = 0, place: str = "q/0", queue: str = "q") -> Meter:
        self.board.sheets[segment].assign(7, 1)
        self.board.sheets[segment].set_state(WORKING)
        return Meter(self.page, segment=segment, place=place, queue=queue, catalog=room.catalog)

    def value(self, name: str, **labels: str) -> float | None:
        """A sample as a scrape has it; None when there is none."""
        for family in parse(generate_latest(self.registry).decode()):
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return sample.value
        return None

    def by_kind(self, name: str, **labels: str) -> dict[str, float]:
        """kind → value, of those that are not 0."""
        found = {}
        for family in parse(generate_latest(self.registry).decode()):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items() and sample.value:
                    found[sample.labels["kind"]] = sample.value
        return found


def waited(began: float, seconds: float, **columns: Any) -> tuple[Any, ...]:
    """A row that was ready `seconds` before a run that began at `began`, by a clock that is ours."""
    values = list(row(1, columns.pop("kind", "works")))
    values[Row.CREATED_AT] = int((began - seconds) * 1e6)
    return tuple(values)


async def test_each_way_out_of_a_run_is_counted_as_what_it_was(room: Room) -> None:
    async def works(args: Any, job: Any) -> None:
        if args.n == 1:
            raise ValueError
        if args.n == 2:
            raise wqcore.Snooze(5)
        if args.n == 3:
            raise wqcore.Cancel("no")
        if args.n == 4:
            raise wqcore.Discard("no")
        if args.n == 5:
            job.output({"a": 1})
        if args.n == 6:
            await asyncio.sleep(60)

    room.kind("works", works)
    room.kind("slow", works, timeout_s=0.01)
    watched = Watched(["works", "slow"])
    executor = room.start(workers=10)
    executor.slow_from_s = layout.DURATION_S[0]
    meter = watched.meter(room)
    executor.on_start_known = lambda row, began: meter.waited_one(row, began, 0.0)
    rows = [row(n + 1, "works", args=b'{"n": %d}' % n) for n in range(6)]
    rows += [row(20, "works", attempt=2, args=b'{"n": 1}'), row(21, "works", args=b"[]"), row(22, "unknown")]
    rows += [row(23, "slow", args=b'{"n": 6}'), row(24, "slow", max_attempts=0)]
    executor.add(rows)
    outcomes = await room.outcomes(len(rows))
    executor.add([row(30, "works", args=b'{"n": 6}')])
    await room.until(lambda: executor.running == 1)
    executor.cancel_running("shutdown")
    await room.until(lambda: not executor.running)
    meter.waited(outcomes, 0.0)
    meter.flush(executor)

    assert watched.by_kind("wqcore_jobs_total", outcome="completed") == {"works": 2}
    assert watched.by_kind("wqcore_jobs_total", outcome="cancelled") == {"works": 1, "slow": 1}
    assert watched.by_kind("wqcore_jobs_total", outcome="discarded") == {"works": 3}
    assert watched.by_kind("wqcore_retries_total") == {"works": 1, "slow": 1}
    assert watched.by_kind("wqcore_snoozes_total") == {"works": 1, "other": 1}
    assert watched.by_kind("wqcore_interrupted_total") == {"works": 1}
    assert watched.by_kind("wqcore_timeouts_total") == {"slow": 1}
    assert watched.by_kind("wqcore_attempts_total") == {"works": 7, "slow": 1}
    assert watched.by_kind("wqcore_job_duration_seconds_count") == {"works": 9, "slow": 1}
    assert watched.by_kind("wqcore_job_wait_seconds_count") == {"works": 9, "slow": 1}


async def test_a_worker_that_takes_a_segment_over_goes_on_counting_where_the_last_one_stopped(room: Room) -> None:
    async def works(args: Any, job: Any) -> None: ...

    room.kind("works", works)
    watched = Watched(["works"])
    executor = room.start()
    for ids in ((1, 2), (3,)):
        meter = watched.meter(room)  # each time a new one: it knows only what the page tells it
        executor.add([row(id_, "works") for id_ in ids])
        await room.until(lambda: not executor.running and not executor.waiting)
        meter.turned(0.004, 2, len(ids))
        meter.count(layout.RECONNECTS)
        meter.flush(executor)
        for stats in executor.stats.values():  # and so does the executor of a new process
            stats.runs, stats.seconds = 0, 0.0
    other = watched.meter(room, segment=1, place="q/1")
    other.turned(0.004, 2, 0)
    other.flush(executor)
    assert watched.by_kind("wqcore_jobs_total", outcome="completed") == {"works": 3}
    assert watched.value("wqcore_turn_duration_seconds_count", queue="q") == 3
    assert watched.value("wqcore_turn_fetched_jobs_sum", queue="q") == 6
    assert watched.value("wqcore_reconnects_total", queue="q") == 2


def test_what_a_forked_process_counts_is_read_by_the_one_that_forked_it() -> None:
    watched = Watched(["works"])
    if not (pid := os.fork()):
        meter = watched.meter(Room())
        meter.turned(0.004, 2, 1)
        meter._queue.write()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert watched.value("wqcore_turn_fetched_jobs_sum", queue="q") == 2


async def test_runs_fall_into_the_buckets_that_their_seconds_say(room: Room) -> None:
    async def works(args: Any, job: Any) -> None: ...

    seed = random.randrange(10**6)
    print(f"seed {seed}")
    dice = random.Random(seed)
    times = [dice.choice(layout.DURATION_S) * dice.choice([0.5, 1.0, 1.01]) for _ in range(500)]
    room.kind("works", works)
    watched = Watched(["works"])
    executor = room.start()
    meter = watched.meter(room)
    stats = executor.stats["works"]
    stats.runs, stats.seconds = len(times), sum(times)
    stats.slow = [seconds for seconds in times if seconds > layout.DURATION_S[0]]
    meter.flush(executor)
    for bound in (*layout.DURATION_S, math.inf):
        labels = {"queue": "q", "kind": "works", "le": "+Inf" if bound == math.inf else repr(bound)}
        found = watched.value("wqcore_job_duration_seconds_bucket", **labels)
        assert found == sum(seconds <= bound for seconds in times), bound
    assert watched.value("wqcore_job_duration_seconds_sum", queue="q", kind="works") == pytest.approx(sum(times))


@pytest.mark.parametrize("count", [1, WAITS_A_TURN, WAITS_A_TURN + 1, 1000])
async def test_a_turn_adds_as_many_waits_as_it_has_jobs_and_looks_at_each_while_they_are_few(room: Room, count: int) -> None:
    async def works(args: Any, job: Any) -> None: ...

    room.kind("works", works, aliases=("formerly",))
    watched = Watched(["works"])
    meter = watched.meter(room)
    outcomes = Outcomes()
    outcomes.done = [waited(1000.0, 2.0 + n / count, kind=["works", "formerly"][n % 2]) for n in range(count)]
    outcomes.done_began = [1000.0] * count
    meter.waited(outcomes, 0.0)
    meter.flush(room.start())
    labels = {"queue": "q", "kind": "works"}
    assert watched.value("wqcore_job_wait_seconds_count", **labels) == count
    mean = sum(2.0 + n / count for n in range(count)) / count
    total = watched.value("wqcore_job_wait_seconds_sum", **labels)
    assert total == pytest.approx(mean * count, rel=1e-4 if count <= WAITS_A_TURN else 0.05)
    assert watched.value("wqcore_job_wait_seconds_bucket", **labels, le="1.0") == 0


async def test_a_wait_counts_from_the_time_a_job_was_due_and_is_never_less_than_nothing(room: Room) -> None:
    async def works(args: Any, job: Any) -> None: ...

    room.kind("works", works)
    watched = Watched(["works"])
    meter = watched.meter(room)
    later = list(waited(1000.0, 90.0))
    later[Row.RUN_AT] = int(997.0 * 1e6)
    meter.waited_one(tuple(later), 1000.0, 0.0)
    meter.waited_one(waited(1000.0, -5.0), 1000.0, 0.0)
    meter.flush(room.start())
    assert watched.value("wqcore_job_wait_seconds_sum", queue="q", kind="works") == pytest.approx(3.0)


async def test_kinds_that_only_workers_know_are_named_by_them_and_those_beyond_the_room_are_other(room: Room) -> None:
    async def works(args: Any, job: Any) -> None: ...

    names = [f"kind{n}" for n in range(layout.KINDS_MAX + 3)]
    for name in names:
        room.kind(name, works)
    watched = Watched(None)
    assert watched.page.kinds() == ["other"]
    executor = room.start()
    meter = watched.meter(room)
    again = watched.meter(room, segment=1, place="q/1")
    executor.add([row(n + 1, name) for n, name in enumerate(names)])
    await room.until(lambda: executor.counters.completed == len(names))
    meter.flush(executor)
    again.flush(executor)
    found = watched.by_kind("wqcore_jobs_total", outcome="completed")
    assert found == dict.fromkeys(names[: layout.KINDS_MAX], 2) | {"other": 6}


def everything(watched: Watched, room: Room) -> None:
    """Every metric has a sample."""
    for at, place in enumerate(watched.places):
        meter = watched.meter(room, segment=at, place=place, queue=place.rpartition("/")[0])
        meter.turned(0.1, 5, 5)
        meter.flush(room.executor)
    watched.page.rescued("of another master", "host", again=1, ended=2, held=4)
    watched.page.ended("q", "died")
    watched.page.ended(None, "stuck")
    counts = {"paused": False, "shards": 2, "ready": 5, "due": 1, "scheduled": 3, "held": 2, "oldest_s": 1.5}
    health = {"notify_queue": 0.0, "job_ids": 9, "oldest_snapshot_s": 1.0, "oldest_snapshot_xids": 4,
              "hidden_sessions": 0, "connections": 4, "connections_max": 100}  # fmt: skip
    table = {"name": "job", "live_rows": 1, "dead_rows": 2, "bytes": 3, "vacuum_age_s": 4.0}
    watched.seen = Seen(1.0, 0.1, {"q": counts}, health, [table], {("worker", "q"): (5, 4)})


async def test_the_exposition_has_every_metric_of_the_table_with_its_type_and_labels_and_no_other(room: Room) -> None:
    async def works(args: Any, job: Any) -> None: ...

    room.kind("works", works)
    room.start()
    watched = Watched(["works"])
    everything(watched, room)
    families = {family.name: family for family in parse(generate_latest(watched.registry).decode())}
    beat = {"wqcore_beat_age_seconds"}  # there is no keeper here
    assert set(families) == {metric.name.removesuffix("_total") for metric in METRICS} - beat
    for metric in METRICS:
        if metric.name not in beat:
            family = families[metric.name.removesuffix("_total")]
            assert (family.type, family.documentation) == (metric.type, metric.help)
            for sample in family.samples:
                assert set(sample.labels) - {"le"} == set(metric.labels), sample
                assert sample.value >= 0
    assert watched.value("wqcore_waiting", queue="q") == 4
    assert watched.value("wqcore_rescued_jobs_total", queue="other", result="discarded") == 2
    assert watched.value("wqcore_seats", queue=ODD) == 3
    names = {family.name for family in parse_openmetrics(generate_openmetrics(watched.registry).decode())}
    assert names == set(families)


def test_gauges_that_nobody_could_measure_are_left_out_rather_than_shown_as_they_were() -> None:
    watched = Watched(["works"])
    assert watched.value("wqcore_database_up") is None
    watched.seen = Seen(1.0, 0.1)
    assert watched.value("wqcore_database_up") == 0
    assert watched.value("wqcore_waiting", queue="q") is None


def test_the_page_of_the_documentation_has_the_table_of_metrics_as_the_code_has_it() -> None:
    lines = [line for line in DOCS.read_text("utf-8").splitlines() if line.startswith("| `wqcore_")]
    expected = [
        f"| `{metric.name}` | {metric.type} | {', '.join(metric.labels)} | {metric.help} |".replace("|  |", "| |")
        for metric in METRICS
    ]
    assert lines == expected
