"""The life-cycle of the processes, each row a sentence: what is done to them, and what must be true afterwards."""

from __future__ import annotations

import signal
import time

import psutil

from tests.fix_master import World, ready, send, until


def test_kill_9_the_keeper_and_a_worker_together_still_rescues(world: World) -> None:
    master = world.start(world.configure())
    ready(world)
    world.insert("nap", 10, {"s": 1.0})
    until(lambda: len(world.runs()) == 10, "ten jobs run")
    for child in psutil.Process(master.pid).children():
        send(child, signal.SIGKILL)
    until(lambda: world.outcomes().get("completed") == 10, "all are completed")
    assert world.scalar("select min(deaths) from wqcore.history") == 1
    assert world.scalar("select max(deaths) from wqcore.history") == 1
    assert master.poll() is None


def test_term_three_times_ends_quickly_and_well(world: World) -> None:
    config = world.configure(process={"drain_timeout_s": 60.0, "cancel_grace_s": 30.0})
    master = world.start(config)
    ready(world)
    world.insert("nap", 5, {"s": 50.0})
    until(lambda: len(world.runs()) == 5, "five jobs run")
    began = time.monotonic()
    for _ in range(3):
        master.send_signal(signal.SIGTERM)
        time.sleep(0.3)  # signals of one number merge when they are not spaced
    assert master.wait(15) == 0
    assert time.monotonic() - began < 12
    assert world.scalar("select count(*) from wqcore.job where attempt = 0") == 5


def test_term_while_a_module_is_being_imported_ends_with_0(world: World) -> None:
    (world.folder / "world_handlers.py").write_text(
        "import pathlib, time\npathlib.Path(__file__).with_name('importing').touch()\ntime.sleep(600)\n"
    )
    master = world.start(world.configure())
    until(lambda: (world.folder / "importing").exists(), "the import has begun")
    master.send_signal(signal.SIGTERM)
    assert master.wait(15) == 0


def test_a_handler_module_that_fails_at_import_ends_the_master_with_a_sentence(world: World) -> None:
    (world.folder / "world_handlers.py").write_text("import no_such_module_anywhere\n")
    master = world.start(world.configure())
    assert master.wait(20) == 2
    assert "cannot import 'world_handlers'" in world.log()
    assert "Traceback" not in world.log()


def test_a_handler_module_that_blocks_at_import_is_given_up(world: World) -> None:
    (world.folder / "world_handlers.py").write_text("import time\ntime.sleep(600)\n")
    master = world.start(world.configure(process={"boot_timeout_s": 1.0}))
    assert master.wait(20) == 2
    assert "still being imported after 1 s" in world.log()


def test_a_module_that_fails_in_each_worker_ends_the_master_without_a_crash_loop(world: World) -> None:
    (world.folder / "world_handlers.py").write_text("raise RuntimeError('broken')\n")
    master = world.start(world.configure(process={"preload": False}))
    assert master.wait(30) == 70
    assert "broken" in world.log()
    assert world.log().count("cannot import") <= 4


def test_a_module_that_starts_a_thread_at_import_is_refused_by_name(world: World) -> None:
    (world.folder / "world_handlers.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    assert world.start(world.configure()).wait(20) == 2
    assert "started a thread" in world.log()
    assert "process.preload = false" in world.log()


def test_a_worker_suspended_past_the_lease_is_not_murdered_and_changes_nothing_when_it_thaws(world: World) -> None:
    config = world.configure(process={"dead_after_s": 2.0, "beat_interval_s": 0.5, "loop_stuck_s": 1.0})
    world.start(config)
    ready(world)
    jobs = world.insert("nap", 5, {"s": 1.0})
    until(lambda: len(world.runs()) == 5, "five jobs run")
    (worker,) = world.workers()
    send(worker, signal.SIGSTOP)
    until(lambda: world.outcomes().get("completed") == 5, "others have run its jobs")
    assert worker.is_running()
    assert worker.status() == psutil.STATUS_STOPPED
    before = world.conn.execute("select id, attempt, deaths, shard from wqcore.history order by id").fetchall()
    send(worker, signal.SIGCONT)
    until(lambda: not worker.is_running() or worker.status() == "zombie", "the thawed worker leaves by itself")
    assert world.conn.execute("select id, attempt, deaths, shard from wqcore.history order by id").fetchall() == before
    assert len(before) == len(jobs)
    assert "fenced" in world.log()


def test_the_whole_tree_suspended_and_thawed_goes_on(world: World) -> None:
    config = world.configure(process={"dead_after_s": 2.0, "beat_interval_s": 0.5, "loop_stuck_s": 1.0})
    master = world.start(config)
    ready(world)
    tree = [psutil.Process(master.pid), *psutil.Process(master.pid).children()]
    pids = {process.pid for process in tree}
    for process in tree:
        send(process, signal.SIGSTOP)
    time.sleep(3.0)  # the fault itself: a freeze longer than the lease and the stuck limit
    for process in reversed(tree):
        send(process, signal.SIGCONT)
    world.insert("nap", 20)
    until(lambda: world.outcomes().get("completed") == 20, "it works again")
    assert {master.pid, *(child.pid for child in psutil.Process(master.pid).children())} == pids


def test_two_masters_share_the_slots_and_run_no_key_twice_at_once(world: World) -> None:
    config = world.configure()
    world.start(config)
    ready(world)
    for number in range(8):
        world.conn.execute(
            "insert into wqcore.job (queue, slot, kind, args, serial_key) select 'default', "
            "(('x' || encode(substr(sha256(convert_to('key-' || %(n)s, 'UTF8')), 1, 4), 'hex'))::bit(32)::bigint %% 16), "
            "'keyed', json_build_object('group', %(n)s::int, 's', 0.02), 'key-' || %(n)s from generate_series(1, 30)",
            {"n": number},
        )
    world.start(config)
    ready(world, shards=2)
    until(lambda: world.outcomes().get("completed") == 240, "all keyed jobs are done", 40)
    assert len({pid for *_, pid, _ in world.notes()}) >= 1
    running: set[str] = set()
    keys = dict(world.conn.execute("select id, serial_key from wqcore.history").fetchall())
    for what, id_, *_ in sorted(world.notes(), key=lambda note: note[4]):
        if what == "start":
            assert keys[id_] not in running
            running.add(keys[id_])
        else:
            running.discard(keys[id_])


def test_process_titles_tell_role_queue_and_load(world: World) -> None:
    master = world.start(world.configure())
    ready(world)
    world.insert("nap", 3, {"s": 3.0})
    titles = lambda: [" ".join(child.cmdline()).strip() for child in psutil.Process(master.pid).children()]  # noqa: E731
    until(lambda: "wqcore: worker default/0 3/20" in titles(), "the title shows 3 of 20")
    assert "wqcore: keeper" in titles()
    assert " ".join(psutil.Process(master.pid).cmdline()).startswith("wqcore: master")
