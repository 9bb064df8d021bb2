"""PostgreSQL alone: pgbench runs the statements of a queue with no worker, no handler and no decoding.

turn: wqcore's own turn, each client with half of the slots, the acknowledged jobs carried over in pgbench's variables.
classic: claim by UPDATE … FOR UPDATE SKIP LOCKED, then DELETE, as River publishes its design.
Every client runs as many transactions as it takes to empty the table, so a rate is never diluted by empty ones.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from pathlib import Path

from wqcore.db.statements import Statements

from ..cluster import Cluster, Database
from ..errors import BenchError
from ..measure import Round, fresh
from ..system import System

CLIENTS = 2
BATCH = 500
SLOTS = 16
HERE = Path(__file__).parent
LIMIT_S = 300.0


def classic(cluster: Cluster, system: System, jobs: int) -> Round:
    """The classic loop on a table of its own."""
    with cluster.database("bench_classic") as database:
        database.conn.execute((HERE / "classic_setup.sql").read_text())
        database.conn.execute(
            "insert into classic_job (kind, args) select 'benchNoop',"
            " jsonb_build_object('id', '1b4e28ba-2fa1-11d2-883f-' || lpad(to_hex(n), 12, '0'))"
            "  from generate_series(1, %s::bigint) n",
            (jobs,),
        )
        database.settle()
        return _run(database, (HERE / "classic.sql").read_text(), jobs, BATCH, "select count(*) from classic_job")


def turn(cluster: Cluster, system: System, jobs: int) -> Round:
    """The turn on wqcore's tables."""
    with fresh(cluster, system) as database:
        with system.feeder(database.dsn) as feeder:
            feeder.insert(jobs)
        database.settle()
        for shard in range(1, CLIENTS + 1):
            database.conn.execute(
                "insert into wqcore.shard (id, process, queue) values (%s, gen_random_uuid(), 'default')", (shard,)
            )
        # batches end unevenly over the slots, and the last of a client only acknowledges
        return _run(database, _turn_script(), jobs, BATCH, "select count(*) from wqcore.job", more=2)


def insert(cluster: Cluster, system: System, count: int) -> Round:
    """Single inserts by wqcore's own statement, one after the other: what committing each costs at least."""
    with fresh(cluster, system) as database:
        return _run(database, _insert_script(), count, 1, "select 0", clients=1)


def _insert_script() -> str:
    values = {
        "queue": "'default'",
        "slot": "0",
        "priority": "1",
        "run_at": "null",
        "kind": "'benchNoop'",
        "max_attempts": "3",
        "serial_key": "null",
        "metadata": "null",
        "args": """'{"id":"1b4e28ba-2fa1-11d2-883f-000000000000"}'""",
        "channel": "null",
        "payload": "null",
    }
    return re.sub(r"%\((\w+)\)s", lambda found: values[found[1]], Statements("wqcore")["insert_one"].decode())


def _turn_script() -> str:
    """The turn as a pgbench script: its parameters are variables, its rows are gathered into those of the next one."""
    lanes = f"array(select s::bigint from generate_series(0, {SLOTS - 1}) s where s % {CLIENTS} = :client_id::int)"
    values = {
        "shard": "(:client_id::bigint + 1)",
        "queue": "'default'",
        "durable": "true",
        "done_ids": ":ids",
        "done_revisions": ":revisions",
        "done_ago_us": ":zeros",
        "keep_hours": "0",
        "lane_slots": lanes,
        "lane_priorities": f"array_fill(1::bigint, array[{SLOTS // CLIENTS}])",
        "lane_after": ":after",
        "due_after_us": f"array_fill(0::bigint, array[{SLOTS // CLIENTS}])",
        "due_after_id": f"array_fill(0::bigint, array[{SLOTS // CLIENTS}])",
        "exclude": "'{}'",
        "busy_keys": "'{}'",
        "n": ":batch::bigint",
        "turn": ":turn::bigint",
        "since": "(:turn::bigint - 1)",
        "held": "'{}'",
        "changed": "true",
    }
    text = re.sub(r"%\((\w+)\)s", lambda found: values[found[1]], Statements("wqcore")["turn"].decode())
    head, _, _ = text.replace("%%", "%").rpartition("select n.*")
    return f"""\\set turn :turn + 1
{head} select coalesce(array_agg(id order by id), '{{}}') as ids, coalesce(array_agg(revision order by id), '{{}}') as revisions,
 coalesce(array_agg(0), '{{}}') as zeros, sum(octet_length(args::text)) as bytes,
 (select array_agg(greatest(l.a, (select max(id) from next where next.slot = l.s)) order by l.n)
    from unnest({lanes}, :after::bigint[]) with ordinality as l (s, a, n)) as after
 from next \\gset
"""


def _run(
    database: Database, script: str, jobs: int, batch: int, count: str, *, more: int = 0, clients: int = CLIENTS
) -> Round:
    transactions = -(-jobs // clients // batch) + more
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write(script)
        file.flush()
        before, began = database.spent(), time.monotonic()
        done = subprocess.run(
            [
                str(database.cluster.bin_path / "pgbench"), "--no-vacuum", "--protocol=prepared",
                f"--client={clients}", f"--jobs={clients}", f"--transactions={transactions}", f"--file={file.name}",
                f"--define=batch={batch}", "--define=turn=0", "--define=ids={}", "--define=revisions={}",
                "--define=zeros={}", f"--define=after={{{','.join(['0'] * (SLOTS // CLIENTS))}}}", database.dsn,
            ],
            capture_output=True, text=True, timeout=LIMIT_S, check=False,
        )  # fmt: skip
        seconds = time.monotonic() - began
        spent = database.spent().since(before)
    left = database.scalar(count)
    if done.returncode or left:
        raise BenchError(f"pgbench left {left} of {jobs} jobs (exit code {done.returncode}): {done.stderr[-1500:]}")
    return {
        "jobs_s": jobs / seconds,
        "cpu_us_postgresql": spent.cpu_s / jobs * 1e6,
        "wal_bytes_job": spent.wal_bytes / jobs,
        "commits_job": spent.commits / jobs,
    }
