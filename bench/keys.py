"""What serial keys cost: drains with keys beside the same drain without, alternating in one run.

    python -m bench.keys [--jobs 100000] [--blocked 100000] [--free 50000] [--rounds 5] [--json]

distinct: every job has a serial key of its own. blocked: two jobs hold two keys for the whole round, many jobs wait behind
these keys in front of the free ones (lower ids, and a higher priority), and the rate is that of the free ones.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from wqcore.client import SyncClient
from wqcore.settings import Settings

from .bench_handlers import BenchBlocked, BenchKeyed, BenchNoop
from .cluster import Cluster, cluster, fill, program
from .rate import drain_rate
from .report import report, say_round, show

HOLD_S = 600.0


def main(
    jobs: Annotated[int, typer.Option(help="Jobs of a drain with distinct keys, and of the one without.")] = 100_000,
    blocked: Annotated[int, typer.Option(help="Jobs behind two busy keys.")] = 100_000,
    free: Annotated[int, typer.Option(help="Free jobs behind the blocked ones.")] = 50_000,
    rounds: Annotated[int, typer.Option(help="Rounds; each has all four drains.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Measures drains with keys and prints their ratios to those without."""
    found: list[dict[str, float]] = []
    with cluster() as server:
        settings = program(2, history=True, drain_timeout_s=0.2)
        for number in range(rounds + 1):
            round_ = {
                "keyless": _round(server, settings, jobs, BenchNoop),
                "distinct": _round(server, settings, jobs, BenchKeyed),
                "free_alone": _round(server, settings, free, BenchNoop),
                "free_blocked": _blocked(server, settings, blocked, free),
            }
            round_["distinct_ratio"] = round_["distinct"] / round_["keyless"]
            round_["blocked_ratio"] = round_["free_blocked"] / round_["free_alone"]
            if number:
                found.append(round_)
            say_round(number, round_, as_json=as_json)
        told = report("keys", found, postgresql=server.settings())
    show(told, as_json=as_json)


def _round(server: Cluster, settings: Settings, jobs: int, kind: Any) -> float:
    fill(server, settings, jobs, kind)
    server.settle()
    rate = drain_rate(server, settings, jobs)["jobs_s"]
    server.conn.execute("truncate wqcore.history")
    return rate


def _blocked(server: Cluster, settings: Settings, blocked: int, free: int) -> float:
    with SyncClient(settings, dsn=server.dsn) as client:
        client.insert_many(BenchBlocked(key, HOLD_S) for key in range(2))
        client.insert_many(BenchBlocked(number % 2) for number in range(blocked))
    fill(server, settings, free, BenchNoop)
    first = server.scalar("select min(id) from wqcore.job where kind = 'benchNoop'")
    server.settle()
    rate = drain_rate(
        server,
        settings,
        free,
        lambda: not server.scalar("select exists (select from wqcore.job where id >= %s)", first),
    )["jobs_s"]
    left = server.scalar("select count(*) from wqcore.job")
    if left != blocked + 2:
        raise RuntimeError(f"{left} jobs are left, not the {blocked + 2} that were blocked")
    server.conn.execute("truncate wqcore.job, wqcore.history")
    return rate


if __name__ == "__main__":
    typer.run(main)
