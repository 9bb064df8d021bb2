"""Real masters on a real PostgreSQL: a folder with a handler module and a configuration, and processes to kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from wqcore.db import embedded

HANDLERS = """
import asyncio, os, time
import msgspec
import wqcore

def note(what, job):
    line = f"{what} {job.id} {job.attempt} {os.getpid()} {time.monotonic():.4f}\\n"
    fd = os.open(os.environ["WQ_TEST_JOURNAL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, line.encode())
    os.close(fd)

@wqcore.kind("nap", max_attempts=5, timeout_s=60, backoff=lambda attempt: 0.05)
class Nap(msgspec.Struct):
    s: float = 0.0
    group: str | None = None

@wqcore.handler
async def nap(args: Nap, job: wqcore.Job) -> None:
    note("start", job)
    await asyncio.sleep(args.s)
    note("end", job)

@wqcore.kind("keyed", serial_key="key-{group}", max_attempts=5)
class Keyed(msgspec.Struct):
    group: int
    s: float = 0.0

@wqcore.handler
async def keyed(args: Keyed, job: wqcore.Job) -> None:
    note("start", job)
    await asyncio.sleep(args.s)
    note("end", job)

@wqcore.kind("pill", max_attempts=10)
class Pill(msgspec.Struct):
    pass

@wqcore.handler
async def pill(args: Pill, job: wqcore.Job) -> None:
    note("start", job)
    os._exit(3)
"""


@pytest.fixture(scope="session")
def server() -> Iterator[embedded.Embedded]:
    """An embedded PostgreSQL of the process tests."""
    folder = Path(tempfile.mkdtemp(prefix="wq-"))
    found = embedded.start(folder / "pg", version=18, delete_after=True)
    yield found
    found.stop()
    shutil.rmtree(folder, ignore_errors=True)


class World:
    """One database, one folder with handlers, and the masters started in it."""

    def __init__(self, folder: Path, dsn: str) -> None:
        self.folder = folder
        self.dsn = dsn
        self.journal = folder / "journal"
        self.masters: list[subprocess.Popen[bytes]] = []
        self.conn = psycopg.connect(dsn, autocommit=True)
        (folder / "world_handlers.py").write_text(HANDLERS)

    def configure(self, **tables: dict[str, Any]) -> Path:
        """Writes the configuration; tables override the defaults key by key."""
        content: dict[str, dict[str, Any]] = {
            "database": {"dsn": self.dsn, "migrate": "auto"},
            "process": {"handlers": ["world_handlers"], "drain_timeout_s": 2.0, "cancel_grace_s": 2.0},
            "queues.default": {"workers": 20, "processes": 1},
        }
        for name, table in tables.items():
            content.setdefault(name.replace("__", "."), {}).update(table)
        path = self.folder / "wq.toml"
        path.write_text(
            "".join(
                f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
                for name, table in content.items()
            )
        )
        return path

    def environ(self) -> dict[str, str]:
        return os.environ | {"PYTHONPATH": str(self.folder), "WQ_TEST_JOURNAL": str(self.journal)}

    def start(self, config: Path) -> subprocess.Popen[bytes]:
        """Starts a master; its log goes to `log<n>`."""
        log = (self.folder / f"log{len(self.masters)}").open("wb")
        master = subprocess.Popen(
            [sys.executable, "-m", "wqcore", "--config", str(config)], env=self.environ(), stderr=log, stdout=log
        )
        self.masters.append(master)
        return master

    def cli(self, config: Path, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "wqcore", "--config", str(config), *words],
            env=self.environ(),
            capture_output=True,
            text=True,
            timeout=60,
        )

    def log(self, number: int = 0) -> str:
        return (self.folder / f"log{number}").read_text()

    def workers(self, number: int = 0) -> list[psutil.Process]:
        """The worker processes of a master, by title."""
        found = []
        for child in psutil.Process(self.masters[number].pid).children():
            with suppress(psutil.NoSuchProcess):
                if "worker" in " ".join(child.cmdline()) and child.status() != psutil.STATUS_ZOMBIE:
                    found.append(child)
        return found

    def insert(self, kind: str, count: int = 1, args: dict[str, Any] | None = None, **columns: Any) -> list[int]:
        """Inserts by SQL, so that a test depends on nothing but the schema."""
        rows = self.conn.execute(
            "insert into wqcore.job (queue, slot, kind, args, max_attempts, serial_key) "
            "select 'default', coalesce(%s, n %% 16), %s, %s::json, %s, %s from generate_series(1, %s) n returning id",
            (columns.get("slot"), kind, json.dumps(args or {}), columns.get("max_attempts", 5), columns.get("serial_key"), count),
        ).fetchall()
        return [id_ for (id_,) in rows]

    def scalar(self, query: str, *params: Any) -> Any:
        row = self.conn.execute(query, params).fetchone()
        return row[0] if row else None

    def outcomes(self) -> dict[str, int]:
        return dict(self.conn.execute("select outcome, count(*) from wqcore.history group by 1").fetchall())

    def notes(self) -> list[tuple[str, int, int, int, float]]:
        """(what, job id, attempt, pid, monotonic time) of every line that a handler wrote."""
        if not self.journal.exists():
            return []
        lines = (line.split() for line in self.journal.read_text().splitlines())
        return [(what, int(id_), int(attempt), int(pid), float(at)) for what, id_, attempt, pid, at in lines]

    def runs(self) -> dict[int, int]:
        """How often each job was started."""
        count: dict[int, int] = {}
        for what, id_, *_ in self.notes():
            if what == "start":
                count[id_] = count.get(id_, 0) + 1
        return count

    def stop(self) -> None:
        """Kills what is left, by pid."""
        for master in self.masters:
            if master.poll() is None:
                tree = [psutil.Process(master.pid), *psutil.Process(master.pid).children(recursive=True)]
                for process in tree:
                    with suppress(psutil.NoSuchProcess):
                        process.resume()
                        process.kill()
                master.wait(10)
        self.conn.close()


@pytest.fixture
def world(server: embedded.Embedded, tmp_path: Path) -> Iterator[World]:
    """A World on a fresh database."""
    name = f"w{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        admin.execute(f"create database {name}")
    parts = psycopg.conninfo.conninfo_to_dict(server.dsn)
    found = World(tmp_path, psycopg.conninfo.make_conninfo("", **{**parts, "dbname": name}))
    yield found
    found.stop()
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        admin.execute(f"drop database {name} with (force)")


def until(condition: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
    """Waits for a condition; fails with `what` when it does not come true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            found = condition()
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName, psutil.NoSuchProcess):
            found = None
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds:g} s: {what}")


def ready(world: World, shards: int = 1) -> None:
    """Waits until that many shards own all slots."""
    until(
        lambda: (
            world.scalar("select count(distinct shard) from wqcore.slot where shard is not null") == shards
            and not world.scalar("select count(*) from wqcore.slot where shard is null")
        ),
        f"{shards} shards own all slots",
    )


def send(process: psutil.Process | subprocess.Popen[bytes], number: signal.Signals) -> None:
    os.kill(process.pid, number)


def lives(process: psutil.Process) -> bool:
    """False when it has ended, also while nobody has reaped it."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
