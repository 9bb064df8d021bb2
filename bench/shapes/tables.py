"""Big tables: a drain beside millions of finished jobs that are kept, and beside a million that wait for their time."""

from __future__ import annotations

import datetime as dt
import time
from functools import partial

from wqcore.client import SyncClient
from wqcore.line.insert import InsertOptions

from ..bench_handlers import BenchNoop
from ..cluster import Database
from ..measure import START_LIMIT_S, Round, drain, drained, fresh, percentile, warm
from ..peers.probe import job_id
from ..plan import Bench, Cell, Shape
from ..system import System

LEAD_S = 2.0
"""Jobs become due only once all of them are inserted."""
SPACING_S = 0.02
FUTURE = """
insert into wqcore.job (queue, slot, priority, run_at, kind, args)
select 'default', n %% 16, 1, now() + interval '1 day' + n * interval '1 second', 'benchNoop', '{"id": "later"}'
  from generate_series(1, %s::bigint) n
"""
HISTORY = """
insert into wqcore.history (id, queue, kind, outcome, priority, attempt, max_attempts, deaths, created_at, attempted_at,
                            finished_at, expires_at, xid, args)
select -n, 'default', 'benchNoop', 'completed', 1, 1, 3, 0, now(), now(), now(), now() + interval '24 hours',
       pg_current_xact_id()::text::bigint, '{"id": "1b4e28ba-2fa1-11d2-883f-000000000000"}'
  from generate_series(1, %s::bigint) n
"""


def history(bench: Bench) -> Shape:
    """wqcore with history, with and without millions of rows in it."""
    rows = bench.sizes.history
    cells = []
    for system in bench.only("wqcore_history"):
        plain = partial(drain, bench.cluster, system, bench.jobs(system))
        cells = [
            Cell("wqcore_history", f"{rows:,} kept", partial(plain, prepare=partial(_fill, HISTORY, rows))),
            Cell("wqcore_history_plain", "none kept", plain),
        ]
    return Shape(
        "history_rows",
        "Beside a big history",
        f"Do {rows:,} finished jobs that are kept slow a drain down?",
        "jobs_s",
        "jobs/s",
        cells,
        rounds=1,
    )


def future(bench: Bench) -> Shape:
    """wqcore, with and without jobs that wait for their time."""
    rows = bench.sizes.future
    cells = []
    for system in bench.only("wqcore"):
        cells = [
            Cell("wqcore", f"{rows:,} waiting", partial(_beside_future, bench, system, rows)),
            Cell("wqcore_plain", "none waiting", partial(drain, bench.cluster, system, bench.jobs(system))),
        ]
    return Shape(
        "future_jobs",
        "Beside jobs that wait for their time",
        f"Do {rows:,} scheduled jobs slow a drain down, and how late do due ones start beside them?",
        "jobs_s",
        "jobs/s",
        cells,
        rounds=bench.side_rounds,
    )


def _fill(statement: str, rows: int, database: Database) -> None:
    database.conn.execute(statement, (rows,))


def _beside_future(bench: Bench, system: System, rows: int) -> Round:
    jobs = bench.jobs(system)
    with fresh(bench.cluster, system) as database:
        _fill(FUTURE, rows, database)
        with system.feeder(database.dsn) as feeder:
            feeder.insert(jobs)
        database.settle()
        # by the primary key: asking for rows by their time would scan a million of them a hundred times a second
        left = "select exists (select from wqcore.job where id > %s)"
        round_ = drained(database, system, jobs, finished=lambda: not database.scalar(left, rows))
        return round_ | _lateness(database, system, bench.sizes.paced)


def _lateness(database: Database, system: System, count: int) -> Round:
    """From a job's run_at to its handler, one job each 20 ms on an otherwise idle queue."""
    with system.feeder(database.dsn) as feeder, system.working(database.dsn) as workers:
        warm(feeder, workers)
        wall_ns = time.time_ns() - time.monotonic_ns()
        first = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=LEAD_S)
        times = [first + dt.timedelta(seconds=SPACING_S * number) for number in range(count)]
        with SyncClient(dsn=database.dsn) as client:
            client.insert_many((BenchNoop(job_id(number)), InsertOptions(run_at=at)) for number, at in enumerate(times))
        entered = workers.entered(count, START_LIMIT_S + SPACING_S * count)
    late_ms = sorted((entered[number] + wall_ns - at.timestamp() * 1e9) / 1e6 for number, at in enumerate(times))
    return {f"late_p{percent}_ms": percentile(late_ms, percent) for percent in (50, 99)}
