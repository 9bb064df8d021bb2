"""What growing costs: a pooler in between, and the time until slots are shared evenly after a master came or went.

    python -m bench.growing pooler --rounds 5      # drains, directly and through PgBouncer, in pairs; it must be on PATH
    python -m bench.growing shares --rounds 10     # two masters, and a third that comes, leaves by TERM, comes, is killed

Both on a PostgreSQL of their own, with fsync. Each line is one measurement; the last lines are medians, lowest and highest.
"""

from __future__ import annotations

import argparse
import os
import pwd
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from wqcore import SyncClient, launch
from wqcore.db import embedded
from wqcore.settings import Database, Queue, Settings

from .bench_handlers import BenchNoop
from .errors import BenchError

SLOTS = 16
Found = dict[str, list[float]]


def main() -> None:
    """Parses and prints."""
    parser = argparse.ArgumentParser(prog="python -m bench.growing")
    parser.add_argument("what", choices=["pooler", "shares"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=200_000, help="of a drain")
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="wqgrow", dir="/tmp"))
    folder.chmod(0o755)
    server = embedded.start(folder / "pg")
    try:
        work = pooled if chosen.what == "pooler" else shares
        for name, values in work(server, folder, chosen).items():
            low, high = min(values), max(values)
            print(f"{name:42} {statistics.median(values):9.2f}   ({low:.2f} to {high:.2f}, n = {len(values)})")
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


# --- a pooler -------------------------------------------------------------------------------------------------------


def pooled(server: embedded.Embedded, folder: Path, chosen: argparse.Namespace) -> Found:
    """Of a drain jobs a second, and CPU of everybody a job; milliseconds of a lone insert, and until its job has ended."""
    found: Found = {}
    dsn = server.dsn
    with bouncer(dsn, folder) as (through, pooler):
        ways = [("directly", Database(dsn=dsn)), ("through PgBouncer", Database(dsn=through, pooler="transaction"))]
        for number in range(chosen.rounds):
            rates = {}
            for name, database in ways if number % 2 else reversed(ways):
                others = [server.pid, pooler]
                rates[name], cpu_us, insert_ms, ended_ms = one_drain(dsn, database, folder, chosen.jobs, others)
                note(found, f"µs of CPU a job {name}", cpu_us)
                note(found, f"jobs/s {name}", rates[name])
                note(found, f"ms of an insert {name}", insert_ms)
                note(found, f"ms until its job has ended {name}", ended_ms)
            note(found, "drain through PgBouncer / directly", rates["through PgBouncer"] / rates["directly"])
    return found


@contextmanager
def bouncer(dsn: str, folder: Path) -> Iterator[tuple[str, int]]:
    """A PgBouncer in transaction mode: its DSN and its pid."""
    program = shutil.which("pgbouncer", path=os.environ["PATH"] + ":/usr/sbin")
    if program is None:
        raise BenchError("there is no pgbouncer on PATH: install it")
    to = conninfo_to_dict(dsn)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "users.txt").write_text('"postgres" ""\n')
    (folder / "b.ini").write_text(
        f"[databases]\n* = host={to['host']}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n"
        f"unix_socket_dir =\nauth_type = trust\nauth_file = {folder}/users.txt\npool_mode = transaction\nlog_stats = 0\n"
    )
    command = [program, "-q", str(folder / "b.ini")]
    if os.geteuid() == 0:
        command[1:1] = ["-u", pwd.getpwuid(Path(str(to["host"])).stat().st_uid).pw_name]
    process = subprocess.Popen(command)
    try:
        until(lambda: listens(port), "PgBouncer listens")
        yield make_conninfo(host="127.0.0.1", port=port, dbname=to["dbname"], user=to["user"]), process.pid
    finally:
        process.terminate()
        process.wait()


def one_drain(
    dsn: str, database: Database, folder: Path, jobs: int, others: list[int]
) -> tuple[float, float, float, float]:
    """Jobs a second of a drain and µs of CPU a job, then the medians of lone inserts and of their jobs' ends, in ms."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("drop schema if exists wqcore cascade")
        launch.prepare(Settings(database=Database(migrate="auto"), queues=queues()), dsn, lambda text: None)
        with SyncClient(dsn=dsn) as client:
            client.insert_many(BenchNoop(str(number)) for number in range(jobs))
        conn.execute("vacuum analyze wqcore.job")
        master = start(database, folder)
        try:
            until(lambda: count(conn) < jobs, "it has begun")
            began, first, before = time.monotonic(), count(conn), cpu_s([master.pid, *others])
            until(lambda: not left(conn), "all have ended", 300, pause_s=0.05)
            rate = first / (time.monotonic() - began)
            cpu_us = (cpu_s([master.pid, *others]) - before) / first * 1e6
            with SyncClient(Settings(database=database)) as client:
                inserts, ends = [], []
                for number in range(30):
                    time.sleep(0.05)
                    at = time.monotonic()
                    client.insert(BenchNoop(str(number)))
                    inserts.append((time.monotonic() - at) * 1e3)
                    until(lambda: not left(conn), "it has ended", pause_s=0.0005)
                    ends.append((time.monotonic() - at) * 1e3)
            return rate, cpu_us, statistics.median(inserts), statistics.median(ends)
        finally:
            master.send_signal(signal.SIGTERM)
            master.wait(60)


# --- shares ---------------------------------------------------------------------------------------------------------


def shares(server: embedded.Embedded, folder: Path, chosen: argparse.Namespace) -> Found:
    """Seconds from a change until every slot has an owner and nobody more than a fair share."""
    found: Found = {}
    dsn = server.dsn
    database = Database(dsn=dsn)
    launch.prepare(Settings(database=Database(migrate="auto"), queues=queues(1)), dsn, lambda text: None)
    masters = [start(database, folder, processes=1) for _ in range(2)]
    try:
        with psycopg.connect(dsn, autocommit=True) as conn:
            until(lambda: even(conn, 2), "two share")
            for _ in range(chosen.rounds):
                for name, end in (("left by TERM", signal.SIGTERM), ("was killed (7 s dead_after_s)", signal.SIGKILL)):
                    third = start(database, folder, processes=1)
                    masters.append(third)
                    until(lambda: registered(conn) == 3, "the third is there")
                    note(found, "s after one came", seconds_until(lambda: even(conn, 3)))
                    third.send_signal(end)
                    note(found, f"s after one {name}", seconds_until(lambda: even(conn, 2)))
                    third.wait(60)
    finally:
        for master in masters:
            master.send_signal(signal.SIGTERM)
        for master in masters:
            master.wait(60)
    return found


def even(conn: psycopg.Connection[Any], masters: int) -> bool:
    """Whether so many shards have all slots, in fair shares."""
    rows = conn.execute("select count(*), shard is null from wqcore.slot group by shard").fetchall()
    return len(rows) == masters and not any(free for _, free in rows) and max(rows)[0] <= -(-SLOTS // masters)


def registered(conn: psycopg.Connection[Any]) -> int:
    """Shards that have their lease."""
    row = conn.execute("select count(*) from wqcore.shard").fetchone()
    return int(row[0]) if row else 0


def seconds_until(condition: Callable[[], bool]) -> float:
    """How long that took."""
    began = time.monotonic()
    until(condition, "they share evenly", 60, pause_s=0.005)
    return time.monotonic() - began


# --- masters --------------------------------------------------------------------------------------------------------


def queues(processes: int = 2) -> dict[str, Queue]:
    """The queue of all masters here."""
    return {"default": Queue(workers=50, processes=processes, slots=SLOTS)}


def start(database: Database, folder: Path, processes: int = 2) -> subprocess.Popen[bytes]:
    """A master as `python -m wqcore` starts it; nothing of what ends is kept."""
    path = folder / f"{time.monotonic_ns()}.toml"
    path.write_text(
        f"[database]\ndsn = '{database.dsn}'\npooler = '{database.pooler}'\nmigrate = 'explicit'\n"
        "[process]\nhandlers = ['bench.bench_handlers']\n[retention]\ncompleted_hours = 0\n"
        f"[queues.default]\nworkers = 50\nprocesses = {processes}\n"
    )
    command = [sys.executable, "-m", "wqcore", "--config", str(path)]
    return subprocess.Popen(command, env=os.environ | {"BENCH_FOLDER": str(folder)}, stderr=subprocess.DEVNULL)


def count(conn: psycopg.Connection[Any]) -> int:
    """Jobs that have not ended."""
    row = conn.execute("select count(*) from wqcore.job").fetchone()
    return int(row[0]) if row else 0


def cpu_s(trees: list[int]) -> float:
    """CPU that these processes and what they have started used so far."""
    total = 0.0
    for pid in trees:
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                total += sum(process.cpu_times()[:2])
    return total


def left(conn: psycopg.Connection[Any]) -> bool:
    """Whether there is one, which costs less to ask while there are many."""
    row = conn.execute("select exists (select from wqcore.job)").fetchone()
    return bool(row and row[0])


def until(condition: Callable[[], bool], what: str, seconds: float = 60, pause_s: float = 0.02) -> None:
    """Waits for it. Raises BenchError."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(OSError):
            if condition():
                return
        time.sleep(pause_s)
    raise BenchError(f"not within {seconds:g} s: {what}")


def listens(port: int) -> bool:
    """True when somebody accepts a connection. Raises OSError when not."""
    with socket.create_connection(("127.0.0.1", port), 1):
        return True


def note(found: Found, name: str, value: float) -> None:
    """Keeps a measurement and prints it."""
    found.setdefault(name, []).append(value)
    print(f"{name}: {value:.2f}", file=sys.stderr)


if __name__ == "__main__":
    main()
