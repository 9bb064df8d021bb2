"""Secrets sing nowhere: what stands in a DSN, in settings of the program, in args and in errors is in no log, no title,
no command line and no output of a command; the texts of errors are kept with their jobs."""

from __future__ import annotations

import json
import os
import re
import signal
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from psycopg.conninfo import make_conninfo

from tests.fix_master import World, ready, until

CANARIES = {
    what: f"canary_{what}_{os.urandom(4).hex()}"
    for what in ("password", "setting", "args", "metadata", "local", "output", "note", "reason")
}

HANDLERS = """
import asyncio, enum, os, threading, time
import msgspec
import wqcore
from world_handlers import note

class Shop(msgspec.Struct):
    token: str

shop = wqcore.settings_for("shop", Shop)

class Colour(enum.Enum):
    RED = "red"

def declared(name, **options):
    def declare(function):
        fields = [("secret", str), ("colour", Colour, Colour.RED)]
        args_type = wqcore.kind(name, **({"max_attempts": 1} | options))(msgspec.defstruct(name, fields))
        function.__annotations__["args"] = args_type
        wqcore.handler(function)
        return function
    return declare

def broken_policy(attempt):
    raise ValueError(os.environ["CANARY_LOCAL"])

@declared("raises", max_attempts=2, backoff=lambda attempt: 0.05)
async def raises(args, job: wqcore.Job):
    local = os.environ["CANARY_LOCAL"]
    try:
        raise KeyError(args.secret)
    except KeyError as error:
        raise ValueError(f"{args.secret} {local} {job.metadata} {shop().token}") from error

@declared("policy", max_attempts=2, backoff=broken_policy)
async def policy(args, job: wqcore.Job):
    raise wqcore.Retry(args.secret)

@declared("discards")
async def discards(args, job: wqcore.Job):
    raise wqcore.Discard(args.secret)

@declared("cancels")
async def cancels(args, job: wqcore.Job):
    raise wqcore.Cancel(args.secret)

@declared("threaded")
def threaded(args, job: wqcore.Job):
    threading.Thread(target=raise_it, args=(args.secret,)).start()
    raise_it(args.secret)

@declared("late", timeout_s=0.2)
def late(args, job: wqcore.Job):
    while not job.stopping:
        time.sleep(0.01)
    raise_it(args.secret)

def raise_it(secret):
    raise RuntimeError(secret)

async def raise_later(secret):
    raise RuntimeError(secret)

class Dying:
    def __init__(self, secret):
        self.secret = secret

    def __del__(self):
        raise_it(self.secret)

@declared("orphans")
async def orphans(args, job: wqcore.Job):
    asyncio.get_running_loop().create_task(raise_later(args.secret))
    asyncio.get_running_loop().call_soon(raise_it, args.secret)
    await asyncio.sleep(0.05)
    Dying(args.secret)

@declared("leaves")
async def leaves(args, job: wqcore.Job):
    job.progress(0.5, os.environ["CANARY_NOTE"])
    job.output({"out": os.environ["CANARY_OUTPUT"]})

@declared("hangs", timeout_s=60)
async def hangs(args, job: wqcore.Job):
    job.progress(0.5, os.environ["CANARY_NOTE"])
    note("hangs", job)
    await asyncio.sleep(600)

@declared("kills")
async def kills(args, job: wqcore.Job):
    os.abort()

@wqcore.on_stop
async def stopping():
    raise ValueError(os.environ["CANARY_LOCAL"])
"""
KINDS = ("raises", "policy", "discards", "cancels", "threaded", "late", "orphans", "leaves")


def found_in(text: str) -> list[str]:
    return [what for what, canary in CANARIES.items() if canary in text]


def titles(pid: int) -> str:
    """Titles and command lines of a master's tree, as `ps` shows them to everybody."""
    shown = []
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        with suppress(psutil.NoSuchProcess, OSError):
            shown += [Path(f"/proc/{process.pid}/{file}").read_text(errors="replace") for file in ("cmdline", "comm")]
    return "\n".join(shown)


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_no_secret_is_in_a_log_a_title_a_command_line_or_the_output_of_a_command(
    world: World, monkeypatch: pytest.MonkeyPatch, log_format: str
) -> None:
    for what, canary in CANARIES.items():
        monkeypatch.setenv(f"CANARY_{what.upper()}", canary)
    (world.folder / "canary.py").write_text(HANDLERS)
    config = world.configure(
        process={"handlers": ["world_handlers", "canary"]},
        logging={"level": "debug", "format": log_format, "tasks": "all"},
        schedules__daily={"kind": "raises", "cron": "0 0 1 1 *"},
        app__shop={"token": CANARIES["setting"]},
        database={"dsn": make_conninfo(world.dsn, password=CANARIES["password"], sslmode="disable")},
    )
    with config.open("a") as file:
        file.write(f'[schedules.daily.args]\nsecret = "{CANARIES["args"]}"\n')
    master = world.start(config)
    ready(world)
    shown = titles(master.pid)
    insert = "insert into wqcore.job (queue, slot, kind, args, metadata, max_attempts) values ('default', 0, %s, %s, %s, %s)"
    metadata = json.dumps({"m": CANARIES["metadata"]})
    args = {"secret": CANARIES["args"]}
    for kind in KINDS:
        world.conn.execute(insert, (kind, json.dumps(args), metadata, 2 if kind in ("raises", "policy") else 1))
    world.conn.execute(insert, ("raises", json.dumps(args | {"colour": CANARIES["args"]}), metadata, 1))
    world.conn.execute(insert, (CANARIES["reason"][:6], json.dumps(args), metadata, 1))  # a kind that nobody knows
    until(lambda: world.scalar("select count(*) from wqcore.history") == len(KINDS) + 1, "all have ended")
    world.conn.execute(insert, ("kills", json.dumps(args), metadata, 1))
    until(lambda: world.scalar("select count(*) from wqcore.history where kind = 'kills'"), "the dead worker's job is rescued")
    ready(world)
    world.conn.execute(insert, ("hangs", json.dumps(args), metadata, 1))
    until(lambda: any(note[0] == "hangs" for note in world.notes()), "a job hangs")
    shown += titles(master.pid)
    for words in (("status",), ("schedules",)) if log_format == "text" else (("status", "--json"), ("check-config",)):
        ran = world.cli(config, *words)
        assert ran.returncode == 0, ran.stderr
        shown += ran.stdout + ran.stderr
    world.conn.execute("select wqcore.cancel(id, %s) from wqcore.job where kind = 'hangs'", (CANARIES["reason"],))
    until(lambda: world.scalar("select count(*) from wqcore.history where kind = 'hangs'"), "it is cancelled")
    world.conn.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity "
        "where datname = current_database() and application_name like 'wqcore%%'",
        (),
    )
    until(lambda: "the database failed us" in world.log(), "a lost connection is logged")
    master.send_signal(signal.SIGTERM)
    assert master.wait(30) == 0
    log = world.log()
    assert found_in(log + shown) == []
    # what was to be logged was, or the silence above would mean nothing
    for sign in ("Task failed", "Task discarded", "Task cancelled", "Task given back", "ValueError at ", "never retrieved",
                 "backoff policy", "stop hook", "timed out after 0.2 s; its thread ended later, with RuntimeError at ",
                 "args do not fit raises", "thread Thread-", "ignored in a finaliser", "worker died"):  # fmt: skip
        assert sign in log, sign
    kept = world.scalar("select string_agg(errors::text, ' ') from wqcore.history")
    assert {"args", "local", "setting", "metadata", "reason"} <= set(found_in(kept))
    if log_format == "json":
        # what the master says for people, and the interpreter's dump of a process that aborts
        dump = r'wqcore: |Fatal Python|Current thread|Thread 0x|  File "|Extension|$'
        assert [line for line in log.splitlines() if not line.startswith("{") and not re.match(dump, line)] == []


def test_a_password_from_the_environment_is_in_no_log_and_no_command_line(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a process can be read by its own user only, as the memory can; that is where secrets belong."""
    dsn = make_conninfo(world.dsn, password=CANARIES["password"], host="/nowhere")
    monkeypatch.setenv("WQCORE_DATABASE__DSN", dsn)
    config = world.configure()
    ran = [world.cli(config, *words) for words in (("status",), ("insert", "nap", "{}"), ("migrate",), ("run",))]
    assert [one.returncode for one in ran] == [3, 3, 3, 3]
    for one in ran:
        assert "host=/nowhere" in one.stderr
        assert found_in(one.stdout + one.stderr) == []
    monkeypatch.setenv("WQCORE_DATABASE__DSN", f"postgresql://u:{CANARIES['password']}@[half/x?{CANARIES['password']}")
    malformed = world.cli(config, "status")
    assert malformed.returncode == 2
    assert "not a connection string" in malformed.stderr
    assert found_in(malformed.stdout + malformed.stderr) == []
