"""A soak: steady load beside an old snapshot, while things are killed and cut, and nothing may be lost or grow.

    make soak MINUTES=30

Two masters with default settings work for one load. Master 0 is what happens to it: workers and keepers are killed, and it
is replaced itself. Master 1 is touched through the network and the server alone, so its processes are as old as the run, and
a leak shows. A transaction in REPEATABLE READ holds a snapshot all the time. No snapshot outlives a crash of PostgreSQL, so
those come in the first third, and the one that is taken after the last is held over all that is judged.

At the end the checker judges the history, and `flatness` the samples. Both are written to soak.json, and drawn.
"""

from __future__ import annotations

import argparse
import bisect
import datetime as dt
import heapq
import itertools
import logging
import math
import random
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil
import psycopg

from tests.chaos import kinds, load
from tests.chaos.flatness import RULES, Judgement, judge
from tests.chaos.pages import machine, put_between
from tests.chaos.sampling import Sample, Sampler
from tests.chaos.soak_figure import draw
from tests.chaos.world import ROOT, World, world
from tests.check.finding import Finding
from tests.check.history import History, read
from tests.check.verdict import findings, verdict
from wqcore.settings import Database, Process

DISTURBED, UNDISTURBED = 0, 1
CLIENTS = 4
DRAIN_S = 60.0
CLIENT_END_S = 30.0
NAMES_LAST_S = 30.0
DEFAULTS: dict[str, dict[str, Any]] = {
    "database": {
        "connect_timeout_s": Database().connect_timeout_s, "statement_timeout_s": Database().statement_timeout_s,
    },
    "process": {
        "dead_after_s": Process().dead_after_s, "beat_interval_s": Process().beat_interval_s,
        "deaths_max": Process().deaths_max, "drain_timeout_s": 10.0,
    },
    "queues.default": {"workers": 40, "processes": 2},
}  # fmt: skip
"""What users have, where a campaign has other values; a drain is shorter, because no job here runs that long."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How long, how much, and what happens how often."""

    seconds: float
    seed: int
    per_second: float = 260.0
    sample_every_s: float = 10.0
    worker_killed_every_s: float = 20.0
    connections_cut_every_s: float = 30.0
    keeper_killed_every_s: float = 60.0
    master_replaced_every_s: float = 120.0
    restarts_at: tuple[float, ...] = (0.1, 0.2, 0.3)
    """Shares of the run."""


class Report(msgspec.Struct, kw_only=True):
    """What a soak found; this is soak.json."""

    plan: Plan
    day: str
    machine: str
    events: dict[str, int]
    restarts_s: list[float]
    jobs: int
    jobs_per_s: float
    snapshot_held_s: float
    verdict: str
    findings: list[str]
    judged: list[Judgement]
    samples: list[Sample]

    def clean(self) -> bool:
        """Nothing wrong in the history, and nothing that grows."""
        return not self.findings and all(each.flat is not False for each in self.judged)


class Mix(load.Mix, frozen=True):
    """A campaign's operations, in proportions that a steady load has, and pulses, whose latency is measured."""

    hopeless: float = 0.5
    effect: float = 0.5
    many: float = 0.3
    once: float = 1.5
    pulse: float = 6.0


class Client(load.Client):
    """A client that sends pulses too."""

    def _pulse(self) -> None:
        self._insert(kinds.Pulse(next(load._tokens)))

    def _entity(self) -> int:
        """Names that are new each half minute: a unique index keeps every dead version of a key while a snapshot sees it."""
        return 10 * int(time.monotonic() / NAMES_LAST_S) + super()._entity()


class Snapshot:
    """A transaction that holds a snapshot, taken anew when a crash of the server has ended it."""

    def __init__(self, here: World) -> None:
        self._here = here
        self._conn: psycopg.Connection[Any] | None = None
        self.longest_s = 0.0
        self._since = 0.0

    def take(self) -> None:
        self.leave()
        self._conn = psycopg.connect(self._here.cluster.dsn, application_name="old snapshot")
        self._conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        self._conn.execute("select count(*) from pg_class")
        self._since = time.monotonic()

    def leave(self) -> None:
        if self._conn is not None:
            self.longest_s = max(self.longest_s, time.monotonic() - self._since)
            self._conn.close()
            self._conn = None


class Chaos:
    """What is done, and how often. Each method is one event; all run in the thread that made the server."""

    def __init__(self, here: World, plan: Plan, snapshot: Snapshot) -> None:
        self.done: Counter[str] = Counter()
        self.restarts_s: list[float] = []
        self._here = here
        self._choose = random.Random(plan.seed)
        self._snapshot = snapshot
        self._began = time.monotonic()
        self._kills = itertools.cycle((signal.SIGTERM, signal.SIGKILL))
        self._leaving: tuple[int, set[int]] | None = None
        self.due: list[tuple[float, int, Callable[[], None], float]] = []
        every = {
            self.kill_worker: plan.worker_killed_every_s,
            self.cut: plan.connections_cut_every_s,
            self.kill_keeper: plan.keeper_killed_every_s,
            self.replace_master: plan.master_replaced_every_s,
        }
        for act, seconds in every.items():
            self._plan(seconds, act, seconds)
        for share in plan.restarts_at:
            self._plan(share * plan.seconds, self.restart_server, math.inf)
        self._plan(0.5, self._fill, 0.5)

    def _plan(self, after_s: float, act: Callable[[], None], every_s: float) -> None:
        heapq.heappush(self.due, (time.monotonic() + after_s, len(self.due), act, every_s))

    def step(self, now: float) -> None:
        """Does what is due."""
        while self.due and self.due[0][0] <= now:
            at, number, act, every_s = heapq.heappop(self.due)
            act()
            if every_s < math.inf:
                heapq.heappush(self.due, (at + every_s, number, act, every_s))

    def kill_worker(self) -> None:
        master = self._here.masters[DISTURBED]
        workers = master.children("worker") if master is not None and master.alive() else []
        if workers:
            worker, began = self._choose.choice(workers), time.monotonic_ns()
            with suppress(psutil.NoSuchProcess):
                worker.kill()
                self.done["workers killed"] += 1
            self._here.fault("kill worker", began, [worker.pid])

    def kill_keeper(self) -> None:
        master = self._here.masters[DISTURBED]
        keepers = master.children("keeper") if master is not None and master.alive() else []
        if master is not None and keepers:
            began, tree = time.monotonic_ns(), master.tree()
            with suppress(psutil.NoSuchProcess):
                keepers[0].kill()
                self.done["keepers killed"] += 1
            self._here.fault("kill keeper", began, tree, lasts_s=10.0)

    def cut(self) -> None:
        self._here.fault("cut connections", time.monotonic_ns())
        self._choose.choice(self._here.proxies).cut(reset=self._choose.random() < 0.5)
        self.done["roads cut"] += 1

    def replace_master(self) -> None:
        """By turns asked to drain and killed; `_fill` starts the next one when it has left."""
        master = self._here.masters[DISTURBED]
        if master is not None and master.alive() and self._leaving is None:
            number = next(self._kills)
            self._leaving = time.monotonic_ns(), set(master.tree())
            master.process.send_signal(number)
            self.done["masters drained" if number == signal.SIGTERM else "masters killed"] += 1

    def _fill(self) -> None:
        master = self._here.masters[DISTURBED]
        if master is not None and master.alive():
            if self._leaving is not None:
                self._leaving[1].update(master.tree())
        elif self._leaving is not None:
            began, pids = self._leaving
            self._here.fault("drain master", began, sorted(pids))
            self._leaving = None
            self._here.start_master(DISTURBED)

    def settle(self, end: float) -> None:
        """Does what was due before the end, and waits until a master that is leaving has a successor."""
        self.step(end)
        while self._leaving is not None:
            self._fill()
            time.sleep(0.05)

    def restart_server(self) -> None:
        began = time.monotonic_ns()
        self._here.cluster.crash()
        self._here.cluster.start()
        self._here.fault("restart server", began)
        self.done["server crashes"] += 1
        self.restarts_s.append(round(time.monotonic() - self._began, 1))
        self._snapshot.take()


def run(plan: Plan, *, say: Callable[[str], None] = print) -> Report:
    """Carries a plan out. The history is kept when the checker found something, or when the soak itself failed."""
    kept = True
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)  # it warns of each lost connection, and we cut them
    with world(DEFAULTS, keep=lambda: kept) as here:
        say(f"seed {plan.seed}; history: {here.folder}")
        for number in range(len(here.masters)):
            here.start_master(number)
        here.wait_ready()
        snapshot = Snapshot(here)
        snapshot.take()
        clients = _clients(here, plan)
        sampler, chaos = Sampler(here, UNDISTURBED), Chaos(here, plan, snapshot)
        _loop(here, plan, clients, sampler, chaos, say)
        here.heal()
        for client in clients:
            client.finish()
        for client in clients:
            client.join(CLIENT_END_S)
            if client.error is not None:
                raise client.error
        began = time.monotonic()
        in_time = here.drained(DRAIN_S)
        say(f"{'drained' if in_time else 'NOT DRAINED'} within {time.monotonic() - began:.1f} s")
        snapshot.leave()
        here.finish()
        history = read(here.folder)
        found = findings(history)
        report = _report(plan, history, found, sampler, chaos, snapshot)
        kept = bool(found)
        return report


def _clients(here: World, plan: Plan) -> list[Client]:
    journal = load.journal(here.folder)
    clients = [
        Client(
            here.client_settings(), journal,
            seed=f"{plan.seed} client {number}", mix=Mix(), per_second=plan.per_second / CLIENTS,
        )
        for number in range(CLIENTS)
    ]  # fmt: skip
    for client in clients:
        client.start()
    return clients


def _loop(
    here: World, plan: Plan, clients: list[Client], sampler: Sampler, chaos: Chaos, say: Callable[[str], None]
) -> None:
    end = time.monotonic() + plan.seconds
    next_sample = time.monotonic() + plan.sample_every_s
    while (now := time.monotonic()) < end:
        here.read_clocks()
        chaos.step(now)
        for client in clients:
            if client.error is not None:
                raise client.error
        if now >= next_sample:
            next_sample += plan.sample_every_s
            sampler.sample()
            say(_line(sampler.samples[-1], chaos.done))
        time.sleep(0.05)
    chaos.settle(end)
    sampler.sample()


def _line(sample: Sample, done: Counter[str]) -> str:
    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f}"

    return (
        f"{sample.at_s:6.0f} s  {shown(sample.jobs_per_s)} jobs/s, {sample.job_rows} unfinished, "
        f"{shown(sample.dead_rows_per_turn)} dead rows and {shown(sample.buffers_per_turn)} pages a turn, "
        f"{sample.connections} + {sample.client_connections} connections, "
        f"worker {sample.worker_uss_mb:.1f} MB, keeper {sample.keeper_uss_mb:.1f} MB, "
        f"{sample.job_dead_rows} dead rows; {sum(done.values())} events"
    )


def _report(
    plan: Plan, history: History, found: list[Finding], sampler: Sampler, chaos: Chaos, snapshot: Snapshot
) -> Report:
    _latencies(history, sampler)
    samples = sampler.samples
    at = [sample.at_s for sample in samples]
    return Report(
        plan=plan,
        day=dt.datetime.now(dt.UTC).date().isoformat(),
        machine=machine(),
        events=dict(chaos.done),
        restarts_s=chaos.restarts_s,
        jobs=len(history.end.finished),
        jobs_per_s=round(len(history.end.finished) / plan.seconds, 1),
        snapshot_held_s=round(snapshot.longest_s, 1),
        verdict=verdict(history, found),
        findings=[str(finding) for finding in found],
        judged=[judge(rule, at, [getattr(each, rule.measure) for each in samples], plan.seconds) for rule in RULES],
        samples=samples,
    )


def _latencies(history: History, sampler: Sampler) -> None:
    """From the call of a pulse's insert to the start of its first run, by the time of the call."""
    started: dict[int, int] = {}
    for each in history.runs:
        if each.kind == "pulse":
            started.setdefault(each.job, each.start)
    invoked = {said.op: said.at for said in history.said if said.phase == "invoke"}
    ends = [sample.at_s for sample in sampler.samples]
    windows: dict[int, list[float]] = {}
    for said in history.said:
        if said.phase == "ok" and said.job in started:
            window = bisect.bisect_left(ends, invoked[said.op] / 1e9 - sampler.began)
            windows.setdefault(window, []).append((started[said.job] - invoked[said.op]) / 1e6)
    for number, sample in enumerate(sampler.samples):
        times = windows.get(number, [])
        sample.pulses = len(times)
        if len(times) >= 2:
            sample.p50_ms = statistics.median(times)
            sample.p99_ms = statistics.quantiles(times, n=100, method="inclusive")[98]


def table(report: Report) -> str:
    """The judgements as a table of Markdown."""
    lines = ["| measure | median | trend over the judged part | allowed |", "|---|--:|--:|--:|"]
    lines += [
        f"| {each.title} | {_number(each.median)} {each.unit} | {each.growth:+.3g} {each.unit} | {_allowed(each)} |"
        for each in report.judged
    ]
    return "\n".join(lines)


def _allowed(judged: Judgement) -> str:
    if judged.allowed is None:
        return "not judged"
    return f"+{judged.allowed:.3g}{'' if judged.flat else ', **not flat**' if judged.flat is False else ', too short'}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="the folder with reliability.md")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    report = run(Plan(seconds=given.minutes * 60, seed=given.seed), say=lambda text: print(text, flush=True))
    write(report, given.out)
    print(table(report))
    for finding in report.findings:
        print(finding)
    print(report.verdict, flush=True)
    return 0 if report.clean() else 1


def write(report: Report, docs: Path) -> None:
    """Writes soak.json, draws soak.svg, and puts the numbers into the page."""
    folder = docs / "reliability"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "soak.json").write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    draw(report, folder / "soak.svg")
    put_between(docs / "reliability.md", "soak", text(report))


def text(report: Report) -> str:
    """What the page says of a run."""
    events = ", ".join(f"{count} {what}" for what, count in sorted(report.events.items()))
    return "\n".join(
        [
            f"{report.day}, {report.plan.seconds / 60:.0f} minutes, seed {report.plan.seed}; {report.machine}: "
            f"{report.jobs:,} jobs ({report.jobs_per_s:.0f} a second), one snapshot held for "
            f"{report.snapshot_held_s / 60:.0f} minutes; {events}.",
            "",
            table(report),
            "",
            f"Verdict: {report.verdict}.",
        ]
    )


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted; every process has been ended")
