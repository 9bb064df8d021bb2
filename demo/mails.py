"""The demo's first act: mails, a worker killed while it sends them, and nothing missing or twice at the mail server."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, LiteralString

import msgspec
import psutil
import psycopg
from cryptography.fernet import Fernet
from psycopg import sql
from rich.console import Console
from rich.markup import escape

import wqcore
from demo import show, verdict
from demo.processes import PROJECT, DemoError, Master, Service, signals_held, wait_until
from demo.smtp_server import REFUSED, Accepted
from demo.verdict import Ended
from handlers.email import ScheduleEmail
from handlers.smtp import bare_address
from wqcore.db import embedded

DEADLINE_S = 55.0
"""The first act must end within a minute."""
MAILS = Path(__file__).parent / "mails.jsonl"
SCHEMA, QUEUE = "wqcore_demo", "internal-queue"
PROCESSES, SEATS = 2, 12
"""Worker processes, and how many mails each sends at a time."""
SERVER_DELAY_MS = 20.0
"""How long the mail server takes for each mail; it makes the demo a little slower, and more like life."""
READ_EVERY_S = 0.1
REPLACED_WITHIN_S = 10.0

CONFIG = """\
[database]
dsn = {dsn}
schema = {schema}
migrate = "auto"

[process]
handlers = ["handlers"]

[logging]
format = "text"

[queues.{queue}]
workers = {workers}
processes = {processes}

[app.secrets]
keys = {keys}

[app.smtp]
host = "127.0.0.1"
port = {port}
tls = "none"
helo_name = "client.example"
sender = "wqcore demo <demo@sender.example>"
connections_max = {seats}
retry_after_s = 1
"""


class Line(msgspec.Struct):
    """A line of mails.jsonl."""

    kind: str
    args: ScheduleEmail


class Journal:
    """The mail server's journal, read as it grows."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._rest = b""
        self._decode = msgspec.json.Decoder(Accepted).decode
        self.accepted: list[Accepted] = []
        self.addresses: set[str] = set()

    def read(self) -> None:
        """Reads what is new."""
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        for line in lines:
            found = self._decode(line)
            self.accepted.append(found)
            self.addresses.add(found.to)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class History:
    """How the jobs ended, read from the database."""

    def __init__(self, dsn: str) -> None:
        self._conn = psycopg.connect(dsn, autocommit=True)

    def counts(self) -> tuple[int, int]:
        """(unfinished jobs, those of them that wait for a retry)."""
        unfinished, retries = self._rows(
            "select count(*), count(*) filter (where errors is not null and run_at > now()) from {}.job"
        )[0]
        return int(unfinished), int(retries)

    def ended(self) -> list[Ended]:
        """Every job that ended, in order."""
        rows = self._rows(
            "select id, args, outcome, attempt, deaths, coalesce(errors, '[]'), "
            "extract(epoch from finished_at - created_at)::float8, "
            "coalesce(extract(epoch from finished_at - attempted_at), 0)::float8, "
            "extract(epoch from finished_at)::float8 from {}.history order by finished_at"
        )
        return [
            Ended(id_, bare_address(args["to"]), outcome, attempt, deaths, tuple(e["error"] for e in errors), *times)
            for id_, args, outcome, attempt, deaths, errors, *times in rows
        ]

    def close(self) -> None:
        """Closes the connection."""
        self._conn.close()

    def _rows(self, query: LiteralString) -> list[Any]:
        return self._conn.execute(sql.SQL(query).format(sql.Identifier(SCHEMA))).fetchall()


class Mails:
    """The play, in the order of its methods."""

    def __init__(self, console: Console, stack: ExitStack, room: Path) -> None:
        self._console = console
        self._room = room
        self._stack = stack
        self._began = time.monotonic()
        self._mails = [msgspec.json.decode(line, type=Line).args for line in MAILS.read_bytes().splitlines()]
        self._addresses = [bare_address(mail.to) for mail in self._mails]
        self._to_deliver = sum(not address.endswith(REFUSED) for address in self._addresses)
        self._killed_at = 0.0
        self._replaced_after_s: float | None = None

    def run(self) -> int:
        """Plays; the exit code."""
        self._start()
        self._insert()
        with show.board(self._console, len(self._mails), self._to_deliver) as board:
            self._watch(board)
        unfinished, _ = self._history.counts()
        exit_code = self._master.stop()
        self._server.stop()
        return self._judge(unfinished, exit_code)

    def _start(self) -> None:
        self._console.print("[bold]wqcore demo[/bold]: PostgreSQL, a mail server and the workers start …")
        with signals_held():
            postgres = embedded.start(self._room / "postgres")
            self._stack.callback(_stop, postgres)
        self.dsn = postgres.dsn
        with psycopg.connect(postgres.dsn, autocommit=True) as conn:
            conn.execute(sql.SQL("drop schema if exists {} cascade").format(sql.Identifier(SCHEMA)))
        journal = self._room / "journal.jsonl"
        journal.write_bytes(b"")
        with signals_held():
            self._server = Service(
                "mail server",
                [
                    sys.executable,
                    "-m",
                    "demo.smtp_server",
                    "--journal",
                    str(journal),
                    "--delay-ms",
                    str(SERVER_DELAY_MS),
                ],
                self._room / "smtp.log",
            )
            self._stack.callback(self._server.stop)
        self._server.wait_ready()
        config = self._room / "demo.toml"
        config.write_text(_config(postgres.dsn, self._server.port), "utf-8")
        with signals_held():
            self._master = Master(config, self._room / "workers.log")
            self._stack.callback(self._master.stop)
        workers = self._master.wait_ready(PROCESSES)
        self._settings = wqcore.load(config, environ={})
        self._journal = Journal(journal)
        self._stack.callback(self._journal.close)
        self._history = History(postgres.dsn)
        self._stack.callback(self._history.close)
        self._console.print(
            f"PostgreSQL (pid {postgres.pid}), mail server (pid {self._server.process.pid}, {SERVER_DELAY_MS:g} ms a "
            f"mail), master (pid {self._master.process.pid}) with {PROCESSES} worker processes "
            f"({', '.join(map(str, workers))}), {SEATS} mails at a time each"
        )

    def _insert(self) -> None:
        self._insert_began = time.time()
        with wqcore.SyncClient(self._settings) as client:
            inserted = client.insert_many(self._mails)
        took_s = time.time() - self._insert_began
        self._console.print(f"inserted {inserted} mails from {MAILS.relative_to(PROJECT)} in {took_s * 1000:.0f} ms")

    def _watch(self, board: show.Board) -> None:
        """Shows progress until every job has ended, or time is up; kills a worker halfway."""
        unfinished = len(self._mails)
        while unfinished and time.monotonic() - self._began < DEADLINE_S - 15.0:
            self._master.check()
            self._journal.read()
            unfinished, retries = self._history.counts()
            ended, workers = len(self._mails) - unfinished, len(self._master.working(QUEUE))
            board.show(len(self._journal.addresses), ended, retries, workers)
            if not self._killed_at and len(self._journal.addresses) >= self._to_deliver / 2:
                self._kill(board)
            time.sleep(READ_EVERY_S)

    def _kill(self, board: show.Board) -> None:
        before = self._master.working(QUEUE)
        if not before:
            raise DemoError("there is no worker to kill")
        victim, *others = before
        self._killed_at = time.time()
        os.kill(victim, signal.SIGKILL)
        board.say(f"[red]SIGKILL[/red] to worker process {victim}, halfway")
        known = {*others, victim}
        wait_until(lambda: bool(set(self._master.working(QUEUE)) - known), REPLACED_WITHIN_S)
        new = set(self._master.working(QUEUE)) - known
        if new:
            self._replaced_after_s = time.time() - self._killed_at
            board.say(f"worker process {min(new)} has taken its place")

    def _judge(self, unfinished: int, exit_code: int | None) -> int:
        self._journal.read()
        ended, accepted = self._history.ended(), self._journal.accepted
        problems = verdict.differences(self._addresses, accepted, ended, unfinished, self._killed_at)
        cost = verdict.kill_cost(accepted, ended, self._killed_at)
        if not self._killed_at:
            problems.append("no worker was killed")
        elif not cost.running:
            problems.append("the worker that was killed ran nothing, so the kill has shown nothing")
        if exit_code != 0:
            problems.append(f"the master did not end well (exit code {exit_code}); see {self._room / 'workers.log'}")
        show.summary(
            self._console,
            mails=len(self._mails),
            accepted=accepted,
            ended=ended,
            busy_s=max((job.ended_at for job in ended), default=0.0) - self._insert_began,
            cost=cost,
            replaced_after_s=self._replaced_after_s,
        )
        for problem in problems:
            self._console.print(f"[red]wrong:[/red] {escape(problem)}")
        if not problems:
            self._console.print(
                f"[green]proved:[/green] all {self._to_deliver} good mails are there, none of the others; "
                f"twice only {cost.sent_twice} that were running at the kill"
            )
        return 1 if problems else 0


def _config(dsn: str, port: int) -> str:
    # a JSON string is also a TOML string
    return CONFIG.format(
        dsn=json.dumps(dsn),
        schema=json.dumps(SCHEMA),
        queue=QUEUE,
        workers=PROCESSES * SEATS,
        processes=PROCESSES,
        port=port,
        seats=SEATS,
        keys=json.dumps(Fernet.generate_key().decode()),
    )


def _stop(postgres: embedded.Embedded) -> None:
    """Stops the server even if its library believes in other users: the folder is the demo's own, and locked by it."""
    pid = postgres.pid
    postgres.stop()
    if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        os.kill(pid, signal.SIGINT)  # PostgreSQL's "fast shutdown"
        psutil.wait_procs([psutil.Process(pid)], timeout=10.0)
