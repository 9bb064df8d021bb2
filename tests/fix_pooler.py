"""Gives `pooler`, a real PgBouncer before the server of `pg`, and `bounced`, a fresh database behind it in transaction mode.

PgBouncer is found on PATH; otherwise Debian's package and its one library are unpacked into a temporary folder, where Debian's
archive is in reach. Where neither works, tests that need it are skipped and say so.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.fix_pg import QUEUES, Server
from wqcore.settings import Database, Settings

DEBIAN = ("pgbouncer", "libc-ares2")
SKIP = "POOLERS ARE NOT TESTED: there is no pgbouncer on PATH, and "


def _unpacked(folder: Path) -> tuple[Path, dict[str, str]]:
    """Debian's PgBouncer, unpacked and not installed: its program, and the environment that it needs."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        pytest.skip(SKIP + "this is no Debian to take it from")
    try:
        subprocess.run(
            ["apt-get", "download", *DEBIAN], cwd=folder, check=True, capture_output=True, text=True, timeout=60
        )
        for package in folder.glob("*.deb"):
            subprocess.run(["dpkg", "-x", package.name, "."], cwd=folder, check=True, capture_output=True, timeout=60)
    except (subprocess.SubprocessError, OSError) as error:
        pytest.skip(SKIP + f"Debian's could not be downloaded: {getattr(error, 'stderr', None) or error}")
    libraries = [str(found.parent) for found in folder.glob("usr/lib/*/libcares.so.2")]
    return folder / "usr/sbin/pgbouncer", os.environ | {"LD_LIBRARY_PATH": os.pathsep.join(libraries)}


@pytest.fixture(scope="session")
def pgbouncer() -> Iterator[tuple[Path, dict[str, str]]]:
    """The program and its environment."""
    folder = Path(tempfile.mkdtemp(prefix="wqbouncer", dir="/tmp"))
    folder.chmod(0o755)
    try:
        found = shutil.which("pgbouncer", path=os.environ["PATH"] + ":/usr/sbin")
        program, environ = (Path(found), dict(os.environ)) if found else _unpacked(folder)
        tried = subprocess.run([str(program), "--version"], env=environ, capture_output=True, text=True)
        if tried.returncode:
            pytest.skip(f"POOLERS ARE NOT TESTED: {program} does not run here: {tried.stderr.strip()}")
        yield program, environ
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Bouncer:
    """A running PgBouncer: the DSN of a database behind it."""

    def __init__(self, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
        self.port, self._process, self._log = port, process, log

    def dsn(self, database: str, **more: str) -> str:
        return make_conninfo(host="127.0.0.1", port=self.port, dbname=database, user="postgres", **more)

    def log(self) -> str:
        return self._log.read_text()


@pytest.fixture
def start_bouncer(
    pgbouncer: tuple[Path, dict[str, str]], tmp_path: Path
) -> Iterator[Callable[..., Bouncer]]:
    """`start_bouncer(server_dsn, mode="transaction", pool=4)` starts one with few sessions, so that they are shared."""
    started: list[subprocess.Popen[bytes]] = []

    def start(server_dsn: str, *, mode: str = "transaction", pool: int = 4, more: str = "") -> Bouncer:
        to = conninfo_to_dict(server_dsn)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        folder = Path(tempfile.mkdtemp(prefix="wqbouncer", dir="/tmp"))
        folder.chmod(0o755)
        log = folder / "log"
        where = " ".join(f"{key}={to[key]}" for key in ("host", "port") if to.get(key))
        (folder / "users.txt").write_text('"postgres" ""\n')
        (folder / "b.ini").write_text(
            f"[databases]\n* = {where}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n"
            f"unix_socket_dir =\nauth_type = trust\nauth_file = {folder}/users.txt\npool_mode = {mode}\n"
            f"default_pool_size = {pool}\nmax_client_conn = 500\nserver_fast_close = 1\n{more}\n"
        )
        program, environ = pgbouncer
        command = [str(program), str(folder / "b.ini")]
        if os.geteuid() == 0:  # it refuses to run as root; only the server's user reaches the folder of its socket
            owner = Path(str(to["host"])).stat().st_uid
            command[1:1] = ["-u", pwd.getpwuid(owner).pw_name]
        with log.open("wb") as out:
            process = subprocess.Popen(command, env=environ, stdout=out, stderr=out)
        started.append(process)
        bouncer = Bouncer(port, process, log)
        _await(bouncer, process)
        return bouncer

    yield start
    for process in started:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()
        process.wait()
        shutil.rmtree(Path(str(process.args[-1])).parent, ignore_errors=True)


def _await(bouncer: Bouncer, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 10
    while time.monotonic() < end and process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", bouncer.port), 1):
            return
        time.sleep(0.02)
    pytest.fail(f"PgBouncer did not start: {bouncer.log()}")


@pytest.fixture
def bounced(start_bouncer: Callable[..., Bouncer], pg: Server, empty_dsn: str) -> Settings:
    """Settings for a fresh database behind a PgBouncer in transaction mode."""
    name = str(conninfo_to_dict(empty_dsn)["dbname"])
    bouncer = start_bouncer(empty_dsn)
    # a server's own error, and not that of a pool that could not connect
    with psycopg.connect(bouncer.dsn(name), autocommit=True) as conn:
        conn.execute("select 1")
    database = Database(dsn=bouncer.dsn(name), migrate="auto", pooler="transaction")
    return Settings(database=database, queues=QUEUES)
