"""A master's port says what is wrong with it while it is wrong, and that all is well when it is over."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from tests.fix_master import World, ready, send, until
from wqcore.db import embedded

TIMES = {"dead_after_s": 2.0, "beat_interval_s": 0.3, "loop_stuck_s": 20.0}


class Watch:
    """What a scraper and a probe see of a master. No counter may ever be less than it was."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.table = {"port": self.port, "survey_interval_s": 0.2}
        self._counters: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def get(self, path: str, accept: str = "", timeout_s: float = 5.0) -> tuple[int, str]:
        """Status and body; (0, "") when nobody answers."""
        conn = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            conn.request("GET", path, headers={"Accept": accept} if accept else {})
            answer = conn.getresponse()
            return answer.status, answer.read().decode()
        except (OSError, http.client.HTTPException):
            return 0, ""
        finally:
            conn.close()

    def says(self, path: str, status: int, *words: str) -> bool:
        """Whether the answer has this status, and a line with each of the words that says that something is wrong."""
        found, body = self.get(path)
        wrong = "\n".join(line for line in body.splitlines() if line.startswith("[-]"))
        return found == status and all(word in wrong for word in words)

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples that have these labels."""
        status, body = self.get("/metrics")
        assert status == 200
        total = 0.0
        for family in parse(body):
            for sample in family.samples:
                key = (sample.name, tuple(sorted(sample.labels.items())))
                if family.type != "gauge":
                    assert sample.value >= self._counters.get(key, 0.0), f"{key} went back"
                    self._counters[key] = sample.value
                if sample.name == name and labels.items() <= sample.labels.items():
                    total += sample.value
        return total


@pytest.fixture
def watch() -> Watch:
    return Watch()


def well(watch: Watch) -> None:
    until(lambda: watch.says("/readyz", 200), f"ready: {watch.get('/readyz')}")
    assert watch.says("/livez", 200)


def keeper_of(master: subprocess.Popen[bytes]) -> psutil.Process:
    return next(child for child in psutil.Process(master.pid).children() if "keeper" in " ".join(child.cmdline()))


def is_stopped(process: psutil.Process) -> bool:
    """A thread that runs on another core stops a moment after the signal was sent."""
    states = [file.read_text().rpartition(")")[2].split()[0] for file in Path(f"/proc/{process.pid}/task").glob("*/stat")]
    return set(states) == {"T"}


def test_stopped_processes_and_a_drain_are_told_by_name(world: World, watch: Watch) -> None:
    tables: dict[str, Any] = {"queues__default": {"workers": 4, "processes": 2}, "watch": watch.table}
    master = world.start(world.configure(process=TIMES | {"dead_after_s": 60.0, "drain_timeout_s": 20.0}, **tables))
    ready(world, 2)
    well(watch)
    worker, keeper = world.workers()[0], keeper_of(master)
    place = next(word for word in " ".join(worker.cmdline()).split() if "/" in word)

    send(keeper, signal.SIGSTOP)
    until(lambda: is_stopped(keeper), "each of its threads has stopped")
    assert watch.get("/livez", timeout_s=0.5) == (0, ""), "a stopped keeper answers nobody, and that is not live"
    send(keeper, signal.SIGCONT)
    well(watch)

    send(worker, signal.SIGSTOP)
    send(master, signal.SIGSTOP)
    until(lambda: watch.says("/livez", 503, "master: the master's loop has not turned for"), "the master is missed")
    until(lambda: watch.says("/readyz", 503, f"worker {place}: its event loop has not turned for"), "and the worker")
    assert place not in watch.get("/livez")[1], "the master replaces a worker: its own supervisor must not end it for that"
    assert watch.value("wqcore_up") == watch.value("wqcore_ready") == 0
    send(worker, signal.SIGCONT)
    send(master, signal.SIGCONT)
    well(watch)

    world.insert("nap", 1, {"s": 30.0})
    until(lambda: watch.value("wqcore_running", queue="default") == 1, "a job runs")
    send(master, signal.SIGTERM)
    until(lambda: watch.says("/readyz", 503, "draining: the master drains"), "it drains")
    status, body = watch.get("/readyz", accept="application/json")
    assert status == 503
    told = {check["name"]: check["problem"] for check in json.loads(body)["checks"] if not check["ok"]}
    assert told["draining"] == "the master drains"
    assert watch.says("/livez", 200), "a master that drains lives"
    send(master, signal.SIGTERM)
    assert master.wait(20) == 0
    assert watch.get("/livez") == (0, "")
    assert "Traceback" not in world.log()


def test_a_lost_lease_and_a_crash_loop_are_told_and_counted_by_cause(world: World, watch: Watch) -> None:
    world.start(world.configure(process=TIMES | {"deaths_max": 100}, watch=watch.table))
    ready(world)
    well(watch)
    good = world.insert("nap", 300)
    until(lambda: watch.value("wqcore_jobs_total", kind="nap", outcome="completed") == len(good), "all are counted")
    # waits are counted when the turn that acknowledges them has come back
    until(lambda: watch.value("wqcore_job_wait_seconds_count", kind="nap") == len(good), "their waits are counted")
    assert watch.value("wqcore_job_duration_seconds_count", kind="nap") == len(good)

    world.conn.execute(
        "create function refuse() returns trigger language plpgsql as $$ begin raise 'not now'; end $$; "
        "create trigger refuse before insert on wqcore.shard execute function refuse(); "
        "begin; update wqcore.slot set shard = null; delete from wqcore.shard; commit"  # as a rescue does it
    )
    until(lambda: watch.says("/readyz", 503, "worker default/0: it has no lease"), "the lease is missed")
    assert watch.says("/livez", 200)
    until(lambda: watch.value("wqcore_reconnects_total", queue="default"), "the new worker tries again and again")
    assert watch.value("wqcore_fenced_total", queue="default") == 1
    assert watch.value("wqcore_worker_restarts_total", queue="default", cause="fenced") == 1
    world.conn.execute("drop trigger refuse on wqcore.shard")
    well(watch)

    world.insert("pill", 1, max_attempts=5)
    until(lambda: watch.says("/readyz", 503, "worker default/0: ", "died soon after their start"), "a crash loop is told")
    assert watch.says("/livez", 200)
    until(lambda: watch.value("wqcore_rescues_total", cause="died") == 5, "each death is rescued")
    assert watch.value("wqcore_worker_restarts_total", cause="died") == 5
    assert watch.value("wqcore_rescued_jobs_total", result="again") == 4
    assert watch.value("wqcore_rescued_jobs_total", result="discarded") == 1
    assert watch.value("wqcore_jobs_total", kind="nap", outcome="completed") == len(good), "nothing that was counted is gone"
    world.insert("nap", 2)
    until(lambda: watch.value("wqcore_jobs_total", kind="nap") == len(good) + 2, "the new worker goes on counting")
    well(watch)


def test_workers_and_keepers_that_are_killed_take_no_count_with_them(world: World, watch: Watch) -> None:
    queues = {"workers": 6, "processes": 3}
    master = world.start(world.configure(process=TIMES, queues__default=queues, watch=watch.table))
    ready(world, 3)
    for killed in range(2):
        world.insert("nap", 200, {"s": 0.001})
        until(lambda: sum(world.outcomes().values()) == 200 * (killed + 1), "all are done")  # noqa: B023
        until(lambda: watch.value("wqcore_jobs_total") == 200 * (killed + 1), "and counted")  # noqa: B023
        for process in (world.workers()[killed], keeper_of(master)):
            send(process, signal.SIGKILL)
        until(lambda: watch.get("/metrics")[0] == 200, "a new keeper answers")
        until(lambda: watch.value("wqcore_worker_restarts_total", cause="died") == killed + 1, "and counts")  # noqa: B023
    until(lambda: watch.value("wqcore_keeper_restarts_total") == 2, "and knows of the others")
    well(watch)
    until(lambda: watch.value("wqcore_workers", state="working") == 3, "all places are filled")
    until(lambda: watch.value("wqcore_memory_pss_bytes", role="worker") > 3e6, "memory is measured")
    world.insert("nap", 5, {"s": 0.0})
    until(lambda: watch.value("wqcore_database_job_ids_total") >= 405, "inserts are seen by their ids")


@pytest.fixture
def own_server() -> Iterator[embedded.Embedded]:
    """A server that the test may stop."""
    folder = Path(tempfile.mkdtemp(prefix="wq-watch-"))
    found = embedded.start(folder / "pg", version=18)
    yield found
    found.stop()
    shutil.rmtree(folder, ignore_errors=True)


def test_a_database_that_is_frozen_or_stopped_is_missed_and_the_master_lives(
    own_server: embedded.Embedded, tmp_path: Path, watch: Watch
) -> None:
    world = World(tmp_path, own_server.dsn)
    postmaster = psutil.Process(own_server.pid)
    tree = [postmaster, *postmaster.children()]
    try:
        world.start(world.configure(process=TIMES, watch=watch.table))
        ready(world)
        well(watch)
        until(lambda: watch.value("wqcore_database_up"), "the database is seen")
        tree = [postmaster, *postmaster.children()]
        for process in tree:
            process.suspend()
        until(lambda: watch.says("/readyz", 503, "database: no heartbeat has gone through for"), "it is missed")
        until(lambda: watch.says("/readyz", 503, "worker default/0: its lease was last proved"), "and the lease is doubted")
        assert watch.says("/livez", 200)
        for process in tree:
            process.resume()
        well(watch)
        world.conn.close()
        send(postmaster, signal.SIGQUIT)  # an immediate stop
        until(lambda: watch.says("/readyz", 503, "database: no heartbeat has gone through for"), "it is missed again")
        until(lambda: watch.get("/metrics")[0] and not watch.value("wqcore_database_up"), "the survey finds none")
        assert watch.says("/livez", 200)
        assert not watch.value("wqcore_waiting"), "no gauge shows what was"
        until(lambda: watch.value("wqcore_keeper_reconnects_total"), "the keeper tries again")
    finally:
        for process in tree:
            if process.is_running():
                process.resume()
        world.stop()


def test_a_port_in_use_ends_the_start_with_an_error_that_names_the_option(world: World, watch: Watch) -> None:
    with socket.create_server(("127.0.0.1", watch.port)):
        run = world.cli(world.configure(watch=watch.table), "run")
    assert run.returncode == 2
    assert f"watch.port = {watch.port}: cannot listen on 127.0.0.1:{watch.port} (Address already in use)" in run.stderr
    assert "Traceback" not in run.stderr
