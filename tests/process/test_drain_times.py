"""A drain lets jobs end that can, gives the rest back without an attempt, and keeps the heartbeat until everyone has left."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.fix_master import World, ready, until

AUDIT = """
create table audit (number serial primary key, what text, at timestamptz default clock_timestamp());
create function audit() returns trigger language plpgsql as
    $$ begin insert into audit (what) values (tg_op || ' ' || tg_table_name); return null; end $$;
create trigger audit after update or delete on wqcore.process for each row execute function audit();
create trigger audit after delete on wqcore.shard for each row execute function audit()
"""
SIGTERM_CAUGHT = 1 << (signal.SIGTERM - 1)


def test_jobs_of_a_tenth_nine_tenths_and_twice_the_drain_time_end_or_are_given_back_and_the_beat_stops_last(
    world: World,
) -> None:
    config = world.configure(
        process={"drain_timeout_s": 2.0, "beat_interval_s": 0.2}, queues__default={"workers": 6, "processes": 2}
    )
    master = world.start(config)
    ready(world, 2)
    world.conn.execute(AUDIT)
    # slots are dealt out in turn: each kind of length lands on both workers
    for seconds in (0.2, 1.8, 4.0):
        world.insert("nap", 2, {"s": seconds})
    until(lambda: len(world.runs()) >= 5, "jobs run")
    world.insert("nap", 200, {"s": 0.5})
    asked = time.monotonic()
    master.send_signal(signal.SIGTERM)
    assert master.wait(20) == 0
    print(f"drained in {time.monotonic() - asked:.1f} s with drain_timeout_s = 2")
    started, ended = world.runs(), {id_ for what, id_, *_ in world.notes() if what == "end"}
    history = world.conn.execute("select id, outcome, attempt, deaths from wqcore.history").fetchall()
    assert sorted(history) == sorted((id_, "completed", 1, 0) for id_ in ended)
    long = {id_ for (id_,) in world.conn.execute("select id from wqcore.job where args ->> 's' = '4.0'").fetchall()}
    assert len(long) == 2
    assert set(started) - ended <= long
    left = world.conn.execute("select attempt, deaths from wqcore.job").fetchall()
    assert len(left) == 206 - len(ended)
    assert set(left) == {(0, 0)}
    for table in ("shard", "claim", "process"):
        assert world.scalar(f"select count(*) from wqcore.{table}") == 0
    order = [what for (what,) in world.conn.execute("select what from audit order by number").fetchall()]
    assert order[-1] == "DELETE process"
    assert order.count("DELETE shard") == 2
    assert order.count("DELETE process") == 1
    first_gone = order.index("DELETE shard")
    assert "UPDATE process" in order[:first_gone]
    # one worker leaves after 1.8 s at the earliest: a beat that stopped with the signal would have been seen once at most
    assert order.count("UPDATE process") >= 3


def test_term_at_any_moment_of_the_boot_ends_with_0_and_leaves_nothing(world: World) -> None:
    seed = int(os.environ.get("WQ_TEST_SEED", random.randrange(10**6)))
    print(f"seed {seed}")
    choose = random.Random(seed)
    config = world.configure(queues__default={"processes": 2})
    world.cli(config, "migrate")
    masters = [world.start(config) for _ in range(4)]

    def caught(pid: int) -> bool:
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
        return bool(int(status["SigCgt"], 16) & SIGTERM_CAUGHT)

    for master in masters:
        until(lambda master=master: caught(master.pid), "the master has taken over TERM")
    for master in choose.sample(masters, len(masters)):
        time.sleep(choose.uniform(0, 0.4))  # the fault: a moment that nobody has chosen
        master.send_signal(signal.SIGTERM)
    assert [master.wait(30) for master in masters] == [0, 0, 0, 0]
    for table in ("shard", "claim", "process"):
        assert world.scalar(f"select count(*) from wqcore.{table}") == 0
    assert world.scalar("select count(*) from wqcore.slot where shard is not null") == 0


FORKED = """
import os, signal, time
from wqcore.proc import children, signals

signals.Flags().install()
restore = signals.restore_in_child

def slowly():
    time.sleep(0.5)
    restore()

signals.restore_in_child = slowly
child = children.Child(0, children.Place("default/0", "default", 1), None, 0, 0.0)
children.Children(lambda: []).fork(child, "time:sleep", 600)
os.kill(child.pid, signal.SIGTERM)
print(os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1]))
"""


def test_a_child_that_gets_term_before_it_has_handlers_of_its_own_does_not_take_it_for_its_masters() -> None:
    found = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=30)
    assert found.stdout.split() == [str(-signal.SIGTERM)], found.stderr
