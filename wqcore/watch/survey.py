"""Looks every 15 s at what a scrape must not wait for: waiting jobs, the health of the database, memory of processes.

A thread of the keeper with a connection of its own, so that no heartbeat waits for a slow look. It sleeps for at least 19
times as long as a look took. What a look could not find out is left out until one can: no gauge shows an old value. Counts
of jobs stop at `COUNT_CAP`. A crash leaves nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import psutil
import psycopg
from psycopg.rows import dict_row

from wqcore import clock
from wqcore.db import faults
from wqcore.db.connect import BY_INDEX, Connection, conninfo
from wqcore.db.statements import Statements
from wqcore.settings import Settings
from wqcore.watch.status import COUNT_CAP

log = logging.getLogger("wqcore.watch")

SHARE = 0.05
"""A look may take this share of the time; a slow one is followed by a longer pause."""
PAUSE_INTERVALS_MAX = 4
"""That pause ends after so many intervals. A look that waits for a frozen database is not work: after 20 s of that, the next one
came after 400 s, and `wqcore_database_up` was 1 for as long, whatever the database did."""
STATEMENT_LIMIT_MS = 10_000
LOOK_LIMIT_S = 15.0
"""A look that takes longer than this has got stuck, or is so slow that the last one is not true any more."""


class Who(NamedTuple):
    """A process of this master."""

    role: str
    queue: str
    pid: int


@dataclass(frozen=True)
class Seen:
    """What one look found; None and empty where it could not."""

    at: float = 0.0
    """Monotonic; 0: there was none yet."""
    took_s: float = 0.0
    queues: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The columns of status.sql, with `oldest_s`."""
    database: dict[str, Any] | None = None
    """The columns of survey_database.sql."""
    tables: list[dict[str, Any]] = field(default_factory=list)
    """The rows of survey_tables.sql."""
    memory: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    """(role, queue) → PSS and USS in bytes, of all its processes."""


class Survey:
    """The thread, and what it saw last.

    Args:
        processes: the processes whose memory is measured.
    """

    def __init__(self, settings: Settings, dsn: str, processes: Callable[[], Iterable[Who]]) -> None:
        self._last = Seen()
        self._good_until = 0.0
        self._settings = settings
        self._dsn = dsn
        self._processes = processes
        self._sql = Statements(settings.database.schema)
        self._queues = set(settings.queues_here())
        self._conn: Connection | None = None
        self._failed = False

    @property
    def seen(self) -> Seen:
        """What the last look found; nothing but when that was, once the next has got stuck (in a database that is frozen)."""
        last = self._last
        return last if clock.monotonic() < self._good_until else Seen(last.at, last.took_s)

    def start(self) -> None:
        """Starts the thread; it ends with the process."""
        threading.Thread(target=self._run, name="wqcore survey", daemon=True).start()

    def _run(self) -> None:
        while True:
            began = clock.monotonic()
            found = self._look()
            took_s = clock.monotonic() - began
            pause_s = pause_after(took_s, self._settings.watch.survey_interval_s)
            self.keep(replace(found, at=clock.monotonic(), took_s=took_s), pause_s)
            clock.sleep(pause_s)

    def keep(self, found: Seen, pause_s: float) -> None:
        """Takes in a look; the next begins after `pause_s`."""
        self._last, self._good_until = found, found.at + pause_s + LOOK_LIMIT_S

    def _look(self) -> Seen:
        found = Seen(memory=memory(self._processes()))
        try:
            found = self._ask(self._connected(), found)
        except (psycopg.Error, OSError) as error:
            if not self._failed:
                log.warning("cannot look at the database for its metrics: %s", faults.one_line(error))
            self._failed = True
            self._give_up()
        else:
            self._failed = False
        return found

    def _ask(self, conn: Connection, found: Seen) -> Seen:
        cursor = conn.cursor(row_factory=dict_row)
        queues = {
            row["name"]: row | {"oldest_s": 0.0}
            for row in cursor.execute(self._sql["status"], {"cap": COUNT_CAP})
            if row["name"] in self._queues
        }
        for row in cursor.execute(self._sql["survey_oldest"]).fetchall():
            if row["queue"] in queues:
                queues[row["queue"]]["oldest_s"] = max(0.0, row["oldest_s"])
        database = cursor.execute(self._sql["survey_database"]).fetchone()
        tables = cursor.execute(self._sql["survey_tables"]).fetchall()
        return replace(found, queues=queues, database=database, tables=tables)

    def _connected(self) -> Connection:
        if self._conn is None:
            info = conninfo(self._dsn, self._settings.database, name="wqcore survey", settings=BY_INDEX)
            self._conn = psycopg.Connection.connect(info, autocommit=True)
            self._conn.execute(f"set statement_timeout = {STATEMENT_LIMIT_MS}")
        return self._conn

    def _give_up(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.pgconn.finish()


def pause_after(took_s: float, interval_s: float) -> float:
    """How long to wait, in seconds, after a look that took so long: the interval, jittered, or what `SHARE` asks for."""
    return max(clock.jittered(interval_s), min(took_s / SHARE - took_s, interval_s * PAUSE_INTERVALS_MAX))


def memory(processes: Iterable[Who]) -> dict[tuple[str, str], tuple[int, int]]:
    """PSS and USS, added up by role and queue. A process that has just ended, or is hidden from us, is left out."""
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for role, queue, pid in processes:
        try:
            info = psutil.Process(pid).memory_full_info()
        except (psutil.Error, OSError):
            continue
        pss, uss = found.get((role, queue), (0, 0))
        found[role, queue] = pss + info.pss, uss + info.uss
    return found
