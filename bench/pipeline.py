"""`python -m bench.pipeline`: plain runs per second of the whole platform, and where the time and the CPU go.

A run without tasks: an event comes in over HTTP, deliverEvent, events.invokeDispatcher, startRun, startQueuedRuns,
performRunExecution with a call to a trivial endpoint, runFinished, startQueuedRuns: seven jobs, or fewer when runs that start
or end together share a startQueuedRuns. Everything is on this machine: PostgreSQL with its durability on, the workers of
conf/prod.toml's queues, the HTTP side, the endpoint and the sender, which keeps so many events on their way that no run waits
for a place. The report is printed and written to docs/benchmarks/pipeline.md.
"""

from __future__ import annotations

import argparse
import http.client
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from bench.cluster import Database, cluster
from bench.errors import BenchError
from bench.run import machine
from demo.processes import DemoError, Service
from demo.stack import Platform

FOLDER = Path(".wqcore/bench-pipeline")
REPORT = Path("docs/benchmarks/pipeline.md")
BATCH = 15
"""Events of one request of the sender."""
UNDERWAY = 90
"""The sender waits while so many of its events have no finished run: less than the 100 places of a job queue."""
WARM_S = 3.0
STAGES = {
    "event stored → matched (deliverEvent)": "e.delivered_at - e.created_at",
    "→ run made (events.invokeDispatcher)": "r.created_at - e.delivered_at",
    "→ place taken (startRun)": "x.created_at - r.created_at",
    "→ execution begun (performRunExecution)": "x.started_at - x.created_at",
    "→ endpoint has answered, run ended": "r.completed_at - x.started_at",
    "in all": "r.completed_at - e.created_at",
}


class Round(NamedTuple):
    """What one round found: runs a second, seconds of each stage (p50, p99), CPU ms of each part, jobs, commits and WAL a run."""

    runs_s: float
    stages: dict[str, tuple[float, float]]
    cpu_ms: dict[str, float]
    jobs: float
    commits: float
    wal_bytes: float


class Sender(threading.Thread):
    """Sends events, as many as keep `UNDERWAY` of them on their way."""

    def __init__(self, platform: Platform, endpoint_port: int, key: str) -> None:
        super().__init__(daemon=True)
        self._platform = platform
        self._endpoint = http.client.HTTPConnection("127.0.0.1", endpoint_port)
        self._key = key
        self._over = threading.Event()
        self.sent = 0
        self._executed = 0
        self.cpu_s = 0.0
        self.error: Exception | None = None

    def run(self) -> None:
        """Sends until `stop`."""
        began = time.thread_time()
        try:
            while not self._over.is_set():
                if self.sent - self._executed > UNDERWAY - BATCH:
                    time.sleep(0.005)
                    self._endpoint.request("GET", "/")  # asking the database as often would cost it a tenth of its time
                    self._executed = int(self._endpoint.getresponse().read())
                    continue
                events = [{"name": "bench.run", "payload": {"n": self.sent + n}} for n in range(BATCH)]
                self._platform.post("/api/v1/events/bulk", {"events": events}, self._key)
                self.sent += BATCH
                self.cpu_s = time.thread_time() - began
        except (DemoError, OSError) as error:
            self.error = error

    def stop(self) -> None:
        """Ends it."""
        self._over.set()
        self.join(30.0)
        if self.error is not None:
            raise BenchError(f"the sender failed: {self.error}")


def measure(database: Database, seconds: float) -> Round:
    """One round: a platform of its own in an empty database."""
    with ExitStack() as stack:
        platform = Platform(FOLDER, database.dsn, stack)
        platform.configure(process={"drain_timeout_s": 1.0})
        platform.start()
        endpoint = Service("endpoint", [sys.executable, "-m", "bench.pipeline_endpoint"], FOLDER / "endpoint.log")
        stack.callback(endpoint.stop)
        endpoint.wait_ready()
        key = platform.create_organization("Bench").dev
        platform.register(f"http://127.0.0.1:{endpoint.port}/", "bench", key)
        parts = {"HTTP side": platform.api.process.pid, "endpoint": endpoint.process.pid}
        with _sending(platform, endpoint.port, key) as sender:
            _follow(platform, sender, WARM_S)
            runs, at, cpu, spent = _ended(platform), time.monotonic(), _cpu(platform, parts, sender), database.spent()
            since = platform.rows("select clock_timestamp() as now")[0].now
            _follow(platform, sender, seconds)
            runs, took = _ended(platform) - runs, time.monotonic() - at
            cpu_after, spent = _cpu(platform, parts, sender), database.spent().since(spent)
        if not runs:
            raise BenchError("no run ended; see the logs in " + str(FOLDER))
        cpu_ms = {part: (cpu_after[part] - before) * 1000 / runs for part, before in cpu.items()}
        cpu_ms["PostgreSQL"] = spent.cpu_s * 1000 / runs
        [done] = platform.rows("select count(*) as jobs from {wq}.history where finished_at > %s", since)
        return Round(
            runs_s=runs / took,
            stages=_stages(platform, since),
            cpu_ms=cpu_ms,
            jobs=done.jobs / runs,
            commits=spent.commits / runs,
            wal_bytes=spent.wal_bytes / runs,
        )


@contextmanager
def _sending(platform: Platform, endpoint_port: int, key: str) -> Iterator[Sender]:
    sender = Sender(platform, endpoint_port, key)
    sender.start()
    try:
        yield sender
    finally:
        sender.stop()


def _follow(platform: Platform, sender: Sender, seconds: float) -> None:
    """Waits so long while everything runs."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and sender.error is None:
        platform.master.check()
        time.sleep(0.1)


def _ended(platform: Platform) -> int:
    return int(platform.rows("select count(*) from {p}.job_run where completed_at is not null")[0].count)


def _cpu(platform: Platform, parts: dict[str, int], sender: Sender) -> dict[str, float]:
    """CPU seconds until now, of each part; workers by their queue."""
    found = {part: sum(psutil.Process(pid).cpu_times()[:2]) for part, pid in parts.items()}
    found["sender"] = sender.cpu_s
    for child in psutil.Process(platform.master.process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            words = child.cmdline()[0].split()
            part = f"workers of {words[2].partition('/')[0]}" if "worker" in words else "keeper"
            found[part] = found.get(part, 0.0) + sum(child.cpu_times()[:2])
    return found


def _stages(platform: Platform, since: object) -> dict[str, tuple[float, float]]:
    columns = ", ".join(
        f"percentile_cont(array[0.5, 0.99]) within group (order by extract(epoch from {stage})) as stage_{n}"
        for n, stage in enumerate(STAGES.values())
    )
    query = (
        f"select {columns} from {{p}}.job_run r join {{p}}.event_record e on e.id = r.event_id "
        "join {p}.job_run_execution x on x.run_id = r.id where r.completed_at is not null and r.created_at > %s"
    )
    [row] = platform.rows(query, since)
    return {name: (p50, p99) for name, (p50, p99) in zip(STAGES, row, strict=True)}


def report(rounds: list[Round], seconds: float) -> str:
    """The page."""
    rates = [found.runs_s for found in rounds]
    parts = sorted(rounds[0].cpu_ms, key=lambda part: -rounds[0].cpu_ms[part])
    cpu = {part: statistics.median(found.cpu_ms.get(part, 0.0) for found in rounds) for part in parts}
    about = machine()
    lines = [
        "# The platform's pipeline, end to end",
        "",
        f"`python -m bench.pipeline`: {len(rounds)} rounds of {seconds:g} s, each with a platform of its own; medians, with the "
        f"lowest and the highest round. {about.cores} cores of {about.cpu}, Linux {about.kernel}, Python {about.python}.",
        "",
        f"**{statistics.median(rates):,.0f} plain runs a second** ({min(rates):,.0f}–{max(rates):,.0f}), "
        f"{statistics.median(found.jobs for found in rounds):.1f} jobs each; events come in over HTTP, {BATCH} a request, "
        f"at most {UNDERWAY:,} on their way.",
        "",
        "| stage | p50 ms | p99 ms |",
        "|---|---:|---:|",
        *(
            f"| {stage} | {statistics.median(found.stages[stage][0] for found in rounds) * 1000:,.1f} "
            f"| {statistics.median(found.stages[stage][1] for found in rounds) * 1000:,.1f} |"
            for stage in STAGES
        ),
        "",
        "| part | CPU ms a run |",
        "|---|---:|",
        *(f"| {part} | {value:.2f} |" for part, value in cpu.items()),
        f"| all | {sum(cpu.values()):.2f} |",
        "",
        f"{statistics.median(found.commits for found in rounds):.1f} commits and "
        f"{statistics.median(found.wal_bytes for found in rounds) / 1000:,.1f} kB of WAL a run.",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Measures; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.pipeline")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of a round (default 20)")
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--out", type=Path, default=REPORT, help=f"the page (default {REPORT})")
    chosen = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    rounds = []
    try:
        with cluster() as server:
            for number in range(chosen.rounds):
                with server.database("bench_pipeline") as database:
                    rounds.append(measure(database, chosen.seconds))
                print(f"round {number + 1}: {rounds[-1].runs_s:,.0f} runs/s", flush=True)
    except (BenchError, DemoError) as error:
        print(f"the benchmark failed: {error}", file=sys.stderr)
        return 1
    text = report(rounds, chosen.seconds)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(text, "utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
