"""What a million jobs that wait for their time cost the others, and how late jobs start that become due.

    python -m bench.scheduled [--future 1000000] [--jobs 100000] [--due 300] [--rounds 5] [--json]

Each round drains the same backlog without and with the waiting jobs in the table, and then lets jobs become due one by
one, beside the waiting ones, on an otherwise idle queue. Lateness is the time from a job's run_at to its handler's first
step, by the clock that both share here.
"""

from __future__ import annotations

import datetime as dt
from typing import Annotated

import typer

from wqcore.client import SyncClient
from wqcore.line.insert import InsertOptions
from wqcore.settings import Settings

from .bench_handlers import BenchDue, BenchNoop
from .cluster import Cluster, cluster, fill, program
from .rate import drain_rate
from .report import report, say_round, show

FUTURE = """
insert into wqcore.job (queue, slot, priority, run_at, kind, args)
select 'default', n %% 16, 1, now() + interval '1 day' + n * interval '1 second', 'benchNoop', '{"id": "later"}'
  from generate_series(1, %s::bigint) n
"""
LEFT = "select exists (select from wqcore.job where id > %s)"
"""Rides the primary key: asking for rows by their time would scan a million of them a hundred times a second."""
LEAD_S = 3.0
"""Jobs become due only once the master is up."""
SPACING_S = 0.02


def main(
    future: Annotated[int, typer.Option(help="Jobs that wait for their time.")] = 1_000_000,
    jobs: Annotated[int, typer.Option(help="Jobs of a drain.")] = 100_000,
    due: Annotated[int, typer.Option(help="Jobs that become due, one each 20 ms.")] = 300,
    rounds: Annotated[int, typer.Option(help="Rounds.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Measures a drain beside future jobs, and the lateness of due ones."""
    found: list[dict[str, float]] = []
    with cluster() as server:
        settings = program(2, history=True)
        fill(server, settings, 1)
        for number in range(rounds + 1):
            alone = _drain(server, settings, jobs)
            server.conn.execute(FUTURE, (future,))
            beside = _drain(server, settings, jobs)
            late = _lateness(server, settings, due)
            round_ = {"alone": alone, "beside": beside, "ratio": beside / alone} | late
            if number:
                found.append(round_)
            say_round(number, round_, as_json=as_json)
        told = report("scheduled", found, postgresql=server.settings())
    show(told, as_json=as_json)


def _drain(server: Cluster, settings: Settings, jobs: int) -> float:
    before = server.scalar("select last_value from wqcore.job_id_seq")
    fill(server, settings, jobs)
    server.settle()
    rate = drain_rate(server, settings, jobs, lambda: not server.scalar(LEFT, before))["jobs_s"]
    server.conn.execute("truncate wqcore.history")
    return rate


def _lateness(server: Cluster, settings: Settings, due: int) -> dict[str, float]:
    first = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=LEAD_S)
    times = [first + dt.timedelta(seconds=SPACING_S * n) for n in range(due)]
    before = server.scalar("select last_value from wqcore.job_id_seq")
    with SyncClient(settings, dsn=server.dsn) as client:
        client.insert_many((BenchDue(at.timestamp()), InsertOptions(run_at=at)) for at in times)
        client.insert(BenchNoop("what the rate waits for first"))
    drain_rate(server, settings, due, lambda: not server.scalar(LEFT, before))
    rows = server.conn.execute("select output::text::float8 * 1000 from wqcore.history where output is not null")
    late_ms = sorted(ms for (ms,) in rows.fetchall())
    server.conn.execute("truncate wqcore.job, wqcore.history")
    return {
        "late_ms_p50": late_ms[len(late_ms) // 2],
        "late_ms_p99": late_ms[int(len(late_ms) * 0.99)],
        "late_ms_max": late_ms[-1],
    }


if __name__ == "__main__":
    typer.run(main)
