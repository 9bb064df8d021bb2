"""Two masters on one server, each over a proxy of its own, and the history of all that happens. Nothing outlives it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import psycopg

from tests.chaos import kinds
from tests.chaos.cluster import Cluster, die_with_parent
from tests.chaos.masters import Master, processes_of
from tests.check import record
from tests.check.history import END, FAULTS, End, Fault
from tests.fix_proxy import Proxy
from wqcore import launch
from wqcore.settings import Settings, load

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = "wqcore"
MASTERS = 2
CLOCKS_EVERY_S = 1.0
EXIT_S = 30.0
"""How long a master may take to drain: more than drain_timeout_s and all graces after it."""


class World:
    """What a campaign acts on. `world` makes one and ends it."""

    def __init__(self, folder: Path, cluster: Cluster, proxies: list[Proxy], settings: dict[str, dict[str, Any]],
                 engine: Path | None) -> None:  # fmt: skip
        self.folder = folder
        self.cluster = cluster
        self.proxies = proxies
        self.masters: list[Master | None] = [None] * MASTERS
        self.started: list[Master] = []
        self.problems: list[str] = []
        self.clocks = [record.clocks()]
        self._engine = engine
        self._faults = record.Journal(folder / FAULTS)
        self._tables = settings
        self.settings = self._settings(cluster.dsn)

    @property
    def client_proxy(self) -> Proxy:
        """The road of the clients."""
        return self.proxies[-1]

    def client_settings(self) -> Settings:
        """For clients of the campaign, over their proxy."""
        return self._settings(self.client_proxy.dsn)

    def prepare(self) -> None:
        """Makes the schema, the audit, and the table of effects."""
        launch.prepare(self.settings, self.cluster.dsn, lambda text: None)
        with self.connect() as conn:
            record.install_audit(conn, SCHEMA)
            conn.execute(kinds.EFFECTS)

    def connect(self) -> psycopg.Connection[Any]:
        """A connection that no fault of the network touches."""
        return psycopg.connect(self.cluster.dsn, autocommit=True, connect_timeout=10)

    def scalar(self, query: str, *params: Any) -> Any:
        """The first column of the first row, on a connection of its own: the last one may have been ended."""
        with self.connect() as conn:
            row = conn.execute(query, params).fetchone()  # type: ignore[arg-type]
        return row[0] if row else None

    # --- masters --------------------------------------------------------------------------------------------------

    def start_master(self, number: int) -> Master:
        """Starts a master; its log is `master<n>-<how often>.log`."""
        log = self.folder / f"master{number}-{len(self.started)}.log"
        roads = [str(self._engine)] if self._engine else []
        environ = {name: value for name, value in os.environ.items() if not name.startswith("WQCORE_")}
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "wqcore", "--config", str(self._config(number))],
                env=environ
                | {
                    "PYTHONPATH": os.pathsep.join([*roads, str(ROOT)]),
                    kinds.FOLDER: str(self.folder),
                    kinds.DSN: self.proxies[number].dsn,
                },
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                preexec_fn=lambda: die_with_parent(signal.SIGKILL),
            )
        master = Master(process, log)
        self.masters[number] = master
        self.started.append(master)
        return master

    def ready(self) -> bool:
        """Whether every slot has an owner and each running master has its workers."""
        masters = [master for master in self.masters if master is not None]
        free = self.scalar(f"select count(*) from {SCHEMA}.slot where shard is null")
        shards = self.scalar(f"select count(*) from {SCHEMA}.shard")
        wanted = len(masters) * sum(queue.process_count() for queue in self.settings.queues.values())
        return not free and shards == wanted

    def wait_ready(self) -> None:
        """Waits until all masters that were started work. Raises RuntimeError."""
        if not wait_until(self.ready, 30):
            logs = "\n".join(master.log.read_text("utf-8", "replace")[-3000:] for master in self.started)
            raise RuntimeError(f"the masters did not start; their logs:\n{logs}")

    def fault(self, what: str, began: int, pids: list[int] | None = None, *, lasts_s: float = 0.0) -> None:
        """Writes down what was done, from `began` until now, or for so long after it."""
        until = max(time.monotonic_ns(), began + int(lasts_s * 1e9))
        self._faults.write(Fault(at=began, until=until, what=what, pids=pids or []))

    def read_clocks(self) -> None:
        """Notes how far the clocks are apart, now and then."""
        if time.monotonic_ns() - self.clocks[-1][0] > CLOCKS_EVERY_S * 1e9:
            self.clocks.append(record.clocks())

    # --- the end --------------------------------------------------------------------------------------------------

    def heal(self) -> None:
        """Everything works again: server, network, suspended processes, two masters."""
        for proxy in self.proxies:
            proxy.heal()
        self.cluster.thaw()
        if self.cluster.process is None or self.cluster.process.poll() is not None:
            self.cluster.start()
        for number, master in enumerate(self.masters):
            if master is not None and master.alive():
                self.resume(master)
            else:
                self.start_master(number)

    def resume(self, master: Master) -> None:
        """Continues what was suspended of a master, itself last: it must not see children that are still stopped."""
        for pid in reversed(master.tree()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def drained(self, seconds: float) -> bool:
        """Waits until no job is unfinished and nothing is held; whether that came true in time."""

        def over() -> bool:
            self.read_clocks()
            return not self.scalar(f"select count(*) from {SCHEMA}.job") and self.ready()

        return wait_until(over, seconds)

    def finish(self) -> None:
        """Drains the masters, then writes down what is left: the end of the history."""
        masters = [master for master in self.masters if master is not None]
        dead_after_s = self.settings.process.dead_after_s
        # rows of masters that were killed are removed by the others, once they are old enough
        wait_until(lambda: self.scalar(f"select count(*) from {SCHEMA}.process") <= len(masters), 3 * dead_after_s + 5)
        for master in masters:
            if not master.alive():
                self.problems.append(f"{master.log.name} ended by itself with code {master.process.returncode}")
                continue
            master.process.terminate()
        for master in masters:
            try:
                code = master.process.wait(EXIT_S)
                if code:
                    self.problems.append(f"{master.log.name} drained with exit code {code}")
            except subprocess.TimeoutExpired:
                self.problems.append(f"{master.log.name} did not drain within {EXIT_S:g} s")
        self._save()

    def _save(self) -> None:
        self.clocks.append(record.clocks())
        for master in self.started:
            text = master.log.read_text("utf-8", "replace")
            if "Traceback" in text:
                self.problems.append(f"{master.log.name} has a traceback: {text[text.index('Traceback') :][:600]}")
        with self.connect() as conn:
            idle = record.idle_transactions(conn)
            record.save_audit(conn, SCHEMA, self.folder)
            end = End(
                finished=record.finished(conn, SCHEMA),
                waiting=record.waiting(conn, SCHEMA),
                effects=[job for (job,) in conn.execute("select job from effect order by 1").fetchall()],
                effect_kinds=kinds.EFFECT_KINDS,
                rows_left=record.rows_left(conn, SCHEMA),
                idle_transactions=idle,
                orphans=self.orphans(),
                problems=self.problems,
                dead_after_s=self.settings.process.dead_after_s,
                deaths_max=self.settings.process.deaths_max,
                clocks=self.clocks,
            )
        (self.folder / END).write_bytes(msgspec.json.encode(end))

    def orphans(self) -> list[str]:
        """Processes of masters that have ended."""
        over = {master.pid for master in self.started if not master.alive()}
        return [text for pid, text in processes_of(over)]

    def end(self) -> None:
        """Kills whatever is left of the masters."""
        for master in self.started:
            with suppress(ProcessLookupError):
                if master.alive():
                    master.process.kill()
            master.process.wait()
        for pid, _ in processes_of({master.pid for master in self.started}):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._faults.close()

    # --- configuration ----------------------------------------------------------------------------------------------

    def _config(self, number: int) -> Path:
        path = self.folder / f"master{number}.toml"
        tables = _merged(self._tables, {"database": {"dsn": self.proxies[number].dsn}})
        path.write_text(
            "".join(
                f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
                for name, table in tables.items()
            )
        )
        return path

    def _settings(self, dsn: str) -> Settings:
        return load(self._config(0), environ={}, overrides={"database.dsn": dsn})


SETTINGS: dict[str, dict[str, Any]] = {
    "database": {"schema": SCHEMA, "migrate": "auto", "connect_timeout_s": 2, "statement_timeout_s": 3.0},
    "process": {
        "handlers": ["tests.chaos.kinds"], "dead_after_s": 2.0, "beat_interval_s": 0.4, "deaths_max": 100,
        "drain_timeout_s": 4.0, "cancel_grace_s": 2.0,
    },
    "queues.default": {"workers": 20, "processes": 2},
    "queues.batches": {"workers": 8, "processes": 1},
}  # fmt: skip
"""The shortest lease that is allowed, so that a fault need not last long to outlive it."""


def _merged(one: dict[str, dict[str, Any]], other: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        name: one.get(name, {}) | other.get(name, {}) for name in (*one, *(name for name in other if name not in one))
    }


@contextmanager
def world(settings: dict[str, dict[str, Any]] | None = None, *, engine: Path | None = None,
          keep: Callable[[], bool] = lambda: False) -> Iterator[World]:  # fmt: skip
    """A World with a server, proxies and a schema, and no master yet.

    Args:
        settings: what differs from SETTINGS.
        engine: a folder with another copy of wqcore, for the masters.
        keep: asked at the end: whether the history stays.
    """
    folder = Path(tempfile.mkdtemp(prefix="wq-chaos-"))
    folder.chmod(0o755)
    with ExitStack() as stack:
        stack.callback(lambda: None if keep() else shutil.rmtree(folder, ignore_errors=True))
        cluster = Cluster(folder)
        stack.callback(lambda: shutil.rmtree(cluster.data, ignore_errors=True))
        stack.callback(cluster.stop)
        proxies = []
        for _ in range(MASTERS + 1):
            proxies.append(Proxy(cluster.dsn).start())
            stack.callback(proxies[-1].stop)
        found = World(folder, cluster, proxies, _merged(SETTINGS, settings or {}), engine)
        stack.callback(found.end)
        found.prepare()
        yield found


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether a condition came true in time; a database that is not there yet is a condition that is not true yet."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(psycopg.OperationalError):
            if condition():
                return True
        time.sleep(0.05)
    return False
