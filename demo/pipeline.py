"""The demo's second act: a platform with an endpoint, runs with tasks and waits, a worker killed, and nothing done twice.

The endpoint runs the published SDK where Node and npm are there and can install it, else `demo.endpoint`, which speaks the
same protocol. Judged by the tables: each event has one run that has ended well, each task of a run was recorded once, and
every place in a queue was given back.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql
from rich.console import Console
from rich.markup import escape

from demo.processes import PROJECT, DemoError, Service, environment, wait_until
from demo.stack import Platform

SCHEMA, PLATFORM_SCHEMA = "wqcore_demo_platform", "demo_platform"
SDK_PROJECT: Final = PROJECT / "tests" / "sdk"
INSTALL_LIMIT_S = 120.0
EVENTS: Final = {"Node": ["steps", "wait", "plain"], "Python": ["order", "hello"]}
"""Names of events, which are those of the jobs that they start, by what the endpoint is written in."""
EVENTS_EACH = 40
RUNS_LIMIT_S = 40.0
SWEEP_EVERY_S = 1.0


def play(console: Console, stack: ExitStack, dsn: str, room: Path) -> list[str]:
    """Plays; what was wrong."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        for schema in (SCHEMA, PLATFORM_SCHEMA):
            conn.execute(sql.SQL("drop schema if exists {} cascade").format(sql.Identifier(schema)))
    shutil.rmtree(room, ignore_errors=True)
    platform = Platform(room, dsn, stack, schema=SCHEMA, platform_schema=PLATFORM_SCHEMA)
    platform.start()
    key = platform.create_organization("Demo").dev
    language, endpoint = _endpoint(console, platform, room, key)
    jobs = platform.register(f"http://127.0.0.1:{endpoint.port}/api/trigger", "shop", key)
    console.print(
        f"the platform's HTTP side (pid {platform.api.process.pid}) at {platform.url}; an endpoint in {language} "
        f"(pid {endpoint.process.pid}) was registered and has {jobs} jobs"
    )
    events = [name for name in EVENTS[language] for _ in range(EVENTS_EACH)]
    began = time.monotonic()
    for name in EVENTS[language]:
        bulk = {"events": [{"name": name, "payload": {"n": n}} for n in range(EVENTS_EACH)]}
        platform.post("/api/v1/events/bulk", bulk, key)
    console.print(f"sent {len(events)} events over HTTP: {', '.join(EVENTS[language])}, {EVENTS_EACH} each")
    _kill(console, platform, len(events))
    _wait(platform, len(events))
    problems = _differences(platform, len(events))
    took_s = time.monotonic() - began
    [tasks] = platform.rows("select count(*) from {p}.task")
    console.print(
        f"{len(events)} runs with {tasks.count} tasks ended in {took_s:.1f} s; one of them, as `runs show` has it:"
    )
    [shown] = platform.rows(
        "select r.id from {p}.job_run r join {p}.task t on t.run_id = r.id where t.noop order by r.number limit 1"
    )
    console.print(escape(platform.show("runs", "show", shown.id).rstrip()))
    if not problems:
        console.print(
            "[green]proved:[/green] each event has one run, each run ended well, and no task was recorded twice"
        )
    return problems


def _endpoint(console: Console, platform: Platform, room: Path, key: str) -> tuple[str, Service]:
    """What its language is, and the endpoint."""
    project = _sdk(console, room)
    if project is not None:
        return "Node", platform.start_node_endpoint(project, key)
    command = [sys.executable, "-m", "demo.endpoint", "--id", "shop", "--platform", platform.url, "--key", key]
    endpoint = Service("endpoint", command, room / "endpoint.log")
    platform.stack.callback(endpoint.stop)
    endpoint.wait_ready()
    return "Python", endpoint


def _sdk(console: Console, room: Path) -> Path | None:
    """The Node project with its packages installed; None, and a line that says why, where that cannot be."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        console.print("there is no Node here: the endpoint is the one in Python, which speaks the same protocol")
        return None
    project = room / "sdk"
    shutil.copytree(SDK_PROJECT, project, ignore=shutil.ignore_patterns("node_modules"))
    command = [npm, "ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    try:
        run = subprocess.run(
            command,
            cwd=project,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=INSTALL_LIMIT_S,
            check=False,
        )
        error = (run.stderr or run.stdout).strip()[-300:] if run.returncode else ""
    except subprocess.TimeoutExpired:
        error = f"it took longer than {INSTALL_LIMIT_S:g} s"
    if error:
        console.print(f"npm cannot install the SDK, so the endpoint is the one in Python: {escape(error)}")
        return None
    return project


def _kill(console: Console, platform: Platform, events: int) -> None:
    """SIGKILL to the process that calls the endpoint, when a quarter of the runs have ended."""
    if not wait_until(lambda: platform.ended_runs() >= events // 4, RUNS_LIMIT_S):
        raise DemoError(f"only {platform.ended_runs()} of {events} runs ended in {RUNS_LIMIT_S:g} s")
    victims = platform.master.working("run-executions")
    if not victims:
        raise DemoError("no worker process calls the endpoint")
    os.kill(victims[0], signal.SIGKILL)
    console.print(f"[red]SIGKILL[/red] to worker process {victims[0]}, which was calling the endpoint")


def _wait(platform: Platform, events: int) -> None:
    """Waits for all runs. What the dead worker left is found by a sweep, every 20 s; here it is asked for at once."""
    deadline = time.monotonic() + RUNS_LIMIT_S
    while not wait_until(lambda: platform.ended_runs() >= events, SWEEP_EVERY_S) and time.monotonic() < deadline:
        platform.master.check()
        platform.wq("schedules", "trigger", "sweepExecutions")


def _differences(platform: Platform, events: int) -> list[str]:
    """What the tables hold that they should not."""
    runs = platform.rows(
        "select r.status, count(*) from {p}.job_run r join {p}.event_record e on e.id = r.event_id "
        "where e.name not like 'dev.trigger.%' group by 1"
    )
    found = Counter({row.status: row.count for row in runs})
    problems = [] if found == {"SUCCESS": events} else [f"{events} runs should have ended well, but: {dict(found)}"]
    twice = platform.rows(
        "select event_id from {p}.job_run group by event_id, job_id having count(*) > 1"
        " union all select run_id from {p}.task group by run_id, name, idempotency_key having count(*) > 1"
    )
    problems += [f"{len(twice)} runs or tasks are there twice"] if twice else []
    if not wait_until(lambda: not platform.rows("select from {p}.job_queue where job_count <> 0"), timeout_s=5.0):
        problems.append("places in a queue were not given back")
    return problems
