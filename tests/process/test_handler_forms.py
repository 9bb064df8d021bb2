"""Handlers in threads and in batches, and hooks, in real worker processes that drain, are killed, or cannot start."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.fix_master import World, ready, send, until

FORMS = """
import asyncio, os, time
import msgspec
import wqcore
from world_handlers import note

@wqcore.kind("block", max_attempts=5, timeout_s=60, backoff=lambda attempt: 0.05)
class Block(msgspec.Struct):
    s: float = 0.0
    polite: bool = True

@wqcore.handler
def block(args: Block, job: wqcore.Job) -> None:
    note("start", job)
    end = time.monotonic() + args.s
    while time.monotonic() < end:
        time.sleep(0.01)
        if args.polite and job.stopping:
            note("stopping", job)
            raise wqcore.Snooze(0)
    note("end", job)

@wqcore.kind("short", max_attempts=5, timeout_s=0.3, backoff=lambda attempt: 0.05)
class Short(msgspec.Struct):
    s: float = 0.0

@wqcore.handler
def short(args: Short, job: wqcore.Job) -> None:
    note("start", job)
    if job.attempt == 1:
        time.sleep(args.s)
        note("end", job)
        raise RuntimeError("late")
    note("end", job)

@wqcore.kind("many", max_attempts=5, timeout_s=60)
class Many(msgspec.Struct):
    s: float = 0.0

@wqcore.handler(max_batch=10, max_wait_s=0.5)
async def many(items: list[wqcore.BatchItem[Many]]) -> None:
    for item in items:
        note(f"start-of-{len(items)}", item.job)
    await asyncio.sleep(max(item.args.s if item.job.attempt == 1 else 0.0 for item in items))

class Told:
    id = attempt = 0

@wqcore.on_start
async def first():
    note("first", Told)
    await asyncio.sleep(float(os.environ.get("WQ_TEST_BOOT_S", "0")))
    if os.environ.get("WQ_TEST_BOOT_FAILS"):
        raise ValueError("no cache today")

@wqcore.on_start
async def second():
    note("second", Told)

@wqcore.on_stop
async def last():
    note("last", Told)

@wqcore.on_stop
async def before_last():
    note("before-last", Told)
    raise ValueError("ignored")
"""


@pytest.fixture
def forms(world: World) -> World:
    (world.folder / "forms.py").write_text(FORMS)
    base = (world.folder / "world_handlers.py").read_text()
    (world.folder / "world_handlers.py").write_text(base[: base.index("@wqcore.kind")])
    return world


def configured(world: World, **tables: dict[str, Any]) -> Path:
    process = {"handlers": ["forms"], **tables.pop("process", {})}
    return world.configure(process=process, **tables)


def whats(world: World) -> list[str]:
    return [what for what, *_ in world.notes()]


# --- threads ---------------------------------------------------------------------------------------------------------


def test_a_thread_that_looks_at_stopping_gives_its_job_back_in_a_drain(forms: World) -> None:
    master = forms.start(configured(forms, process={"drain_timeout_s": 20.0}))
    ready(forms)
    forms.insert("block", 3, {"s": 60.0})
    until(lambda: len(forms.runs()) == 3, "three jobs run in threads")
    master.send_signal(signal.SIGTERM)
    assert master.wait(60) == 0
    assert whats(forms).count("stopping") == 3
    assert forms.conn.execute("select attempt, deaths from wqcore.job").fetchall() == [(0, 0)] * 3
    assert forms.scalar("select count(*) from wqcore.shard") == 0


def test_a_thread_that_ignores_the_drain_ends_with_its_worker_and_is_not_charged(forms: World) -> None:
    master = forms.start(configured(forms, process={"drain_timeout_s": 0.3, "cancel_grace_s": 0.3}))
    ready(forms)
    forms.insert("block", 2, {"s": 600.0, "polite": False})
    forms.insert("block", 20, {"s": 0.0})
    until(lambda: forms.outcomes().get("completed") == 20 and len(forms.runs()) == 22, "two jobs run on")
    master.send_signal(signal.SIGTERM)
    assert master.wait(60) == 0
    assert "2 handlers in threads did not end" in forms.log()
    assert "last" in whats(forms)
    assert forms.conn.execute("select attempt, deaths from wqcore.job").fetchall() == [(0, 0)] * 2
    assert forms.scalar("select count(*) from wqcore.shard") == 0
    assert forms.scalar("select count(*) from wqcore.claim") == 0


def test_kill_9_a_worker_charges_the_jobs_in_its_threads_once(forms: World) -> None:
    forms.start(configured(forms))
    ready(forms)
    forms.insert("block", 3, {"s": 600.0, "polite": False})
    until(lambda: len(forms.runs()) == 3, "three jobs run in threads")
    (worker,) = forms.workers()
    send(worker, signal.SIGKILL)
    until(lambda: len({pid for what, _, _, pid, _ in forms.notes() if what == "start"}) == 2, "they run again", 60)
    until(lambda: sum(forms.runs().values()) == 6, "all three run again", 60)
    assert forms.conn.execute("select attempt, deaths from wqcore.job").fetchall() == [(1, 1)] * 3


def test_a_thread_over_its_time_is_never_beside_the_next_run_of_its_job(forms: World) -> None:
    forms.start(configured(forms))
    ready(forms)
    forms.insert("short", 5, {"s": 1.5})
    until(lambda: forms.outcomes().get("completed") == 5, "all are completed by their second run", 60)
    order: dict[int, list[str]] = {}
    for what, id_, attempt, *_ in forms.notes():
        if what in ("start", "end") and id_:
            order.setdefault(id_, []).append(f"{what} {attempt}")
    assert list(order.values()) == [["start 1", "end 1", "start 2", "end 2"]] * 5
    assert forms.scalar("select count(*) from wqcore.history where errors::text like '%%timed out after 0.3 s%%'") == 5


# --- batches ---------------------------------------------------------------------------------------------------------


def test_kill_9_a_worker_charges_each_job_of_a_batch_once(forms: World) -> None:
    forms.start(configured(forms))
    ready(forms)
    forms.insert("many", 10, {"s": 600.0})
    until(lambda: sum(what.startswith("start-of") for what in whats(forms)) == 10, "all jobs run in batches")
    (worker,) = forms.workers()
    send(worker, signal.SIGKILL)
    until(lambda: forms.outcomes().get("completed") == 10, "all are completed by their second run", 60)
    assert forms.conn.execute("select attempt, deaths, count(*) from wqcore.history group by 1, 2").fetchall() == [
        (2, 1, 10)
    ]


def test_a_drain_interrupts_a_batch_and_gives_every_attempt_back(forms: World) -> None:
    master = forms.start(configured(forms, process={"drain_timeout_s": 0.3}))
    ready(forms)
    forms.insert("many", 10, {"s": 600.0})
    until(lambda: sum(what.startswith("start-of") for what in whats(forms)) == 10, "all jobs run in batches")
    master.send_signal(signal.SIGTERM)
    assert master.wait(60) == 0
    assert forms.conn.execute("select attempt, deaths from wqcore.job").fetchall() == [(0, 0)] * 10


# --- hooks and settings ----------------------------------------------------------------------------------------------


def test_hooks_run_before_the_first_job_and_after_the_last(forms: World) -> None:
    master = forms.start(configured(forms))
    ready(forms)
    forms.insert("block", 1)
    until(lambda: forms.outcomes().get("completed") == 1, "a job is completed")
    master.send_signal(signal.SIGTERM)
    assert master.wait(60) == 0
    assert whats(forms) == ["first", "second", "start", "end", "before-last", "last"]
    assert "before_last failed" in forms.log()


def test_a_failing_start_hook_ends_the_boot_with_one_line_and_exit_code_70(
    forms: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WQ_TEST_BOOT_FAILS", "1")
    master = forms.start(configured(forms))
    assert master.wait(60) == 70
    assert set(whats(forms)) == {"first"}
    lines = [line for line in forms.log().splitlines() if "no cache today" in line]
    assert 1 <= len(lines) <= 3  # a line a try
    assert "start hook forms.first failed: ValueError: no cache today" in lines[0]
    assert "Traceback" not in forms.log()


def test_term_while_a_start_hook_runs_ends_with_0(forms: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WQ_TEST_BOOT_S", "600")
    master = forms.start(configured(forms))
    until(lambda: "first" in whats(forms), "the start hook runs")
    master.send_signal(signal.SIGTERM)
    assert master.wait(60) == 0
    assert whats(forms) == ["first"]


@pytest.mark.parametrize("preload", [True, False])
def test_settings_that_a_handler_needs_are_checked_before_any_job_runs(world: World, preload: bool) -> None:
    (world.folder / "needy.py").write_text(
        "import msgspec, wqcore\n"
        "class Shop(msgspec.Struct):\n    port: int\n"
        "shop = wqcore.settings_for('shop', Shop)\n"
        "@wqcore.kind('k')\nclass K(msgspec.Struct):\n    pass\n"
        "@wqcore.handler\nasync def k(args: K) -> None: ...\n"
    )
    process = {"handlers": ["needy"], "preload": preload}
    config = world.configure(process=process, app__shop={"port": "http"})
    checked = world.cli(config, "check-config")
    assert checked.returncode == 2
    assert "app.shop.port: Expected `int`, got `str`" in checked.stderr
    master = world.start(config)
    assert master.wait(60) == (2 if preload else 70)
    assert "app.shop.port: Expected `int`, got `str`" in world.log()
    right = world.configure(process=process, app__shop={"port": 80})
    assert world.cli(right, "check-config").returncode == 0
