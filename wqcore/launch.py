"""From settings to a running master: the database made ready, the modules preloaded, the places decided.

Everything that needs a connection happens here and is closed before the master forks.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import msgspec
from msgspec import UNSET, UnsetType
from setproctitle import setproctitle

from wqcore.catalog import Kind, catalog
from wqcore.db import embedded, faults, migrate, wake
from wqcore.db.connect import Connection, connect_sync, describe, session_problem
from wqcore.db.statements import Statements
from wqcore.errors import ConfigError
from wqcore.proc.children import Place
from wqcore.proc.master import Master, Orders, sheets_of
from wqcore.proc.preload import preload
from wqcore.proc.recycling import Recycling
from wqcore.recurring import Source, columns, declared_at, problems
from wqcore.resource import app_problems, use_app_settings
from wqcore.settings import HOME, Database, Process, Schedule, Settings
from wqcore.version import VERSION
from wqcore.watch import port as watch_port
from wqcore.watch.page import Page

CHILD_MODULES = ["wqcore.proc.entry"]
WATCH_MODULES = ["wqcore.watch.station"]
"""Only for a master with a watch.port."""
NOT_PRELOADED = (
    "process.preload = false: schedules that the handlers' modules declare (wqcore.recurring) are not known to this master "
    "and are not fired by it; those under [schedules] are"
)


@contextmanager
def database(settings: Settings) -> Iterator[str]:
    """The DSN to use; an embedded server is started for as long as the context lasts. Raises ConfigError."""
    if settings.database.embedded:
        server = embedded.start(settings.database.embedded_path, version=settings.database.embedded_version)
        try:
            yield server.dsn
        finally:
            server.stop()
    elif settings.database.dsn is UNSET or not isinstance(settings.database.dsn, str):
        raise ConfigError(["database.dsn is not set"])
    else:
        yield settings.database.dsn


def parts(settings: Settings, dsn: str) -> list[tuple[str, Settings, str]]:
    """(name, settings, DSN) of each database; `dsn` is that of [database]."""
    others = [(name, settings.part(name), str(each.dsn)) for name, each in settings.databases.items()]
    return [(HOME, settings.part(HOME), dsn), *others]


def here(settings: Settings, dsn: str) -> tuple[str, Settings, str]:
    """The database whose queues this master runs. Raises ConfigError when they are in several."""
    wanted = settings.database_here()
    return next(part for part in parts(settings, dsn) if part[0] == wanted)


def prepare(settings: Settings, dsn: str, say: Callable[[str], None]) -> None:
    """Makes schema and queues of all databases ready.

    Raises SchemaError, NotPermitted, DatabaseUnavailable or ConfigError.
    """
    for _, part, where in parts(settings, dsn):
        _prepare(part, where, say)


def _prepare(settings: Settings, dsn: str, say: Callable[[str], None]) -> None:
    conn = connect_sync(dsn, settings.database, name="wqcore launch")
    try:
        check_session(conn, dsn, settings.database)
        bring(conn, migrate.queue_line(settings.database.schema), settings, say)
        sync_queues(conn, settings)
        conn.execute(Statements(settings.database.schema)["make_partitions"])
    except Exception as error:
        behind = faults.pooler_problem(error)
        if behind is not None:
            raise behind from None
        if faults.is_transient(error):
            raise faults.unavailable(error, describe(dsn)) from error
        denied = faults.not_permitted(error, settings.database.schema)
        if denied is not None:
            raise denied from None
        raise
    finally:
        conn.close()


def check_session(conn: Connection, dsn: str, database: Database) -> None:
    """Raises ConfigError when a pooler in between has dropped our settings."""
    with conn.transaction():
        row = conn.execute(Statements(database.schema)["session"]).fetchone()
    problem = session_problem(dsn, database, row[0] if row is not None else 0.0)
    if problem is not None:
        raise problem


def bring(conn: Connection, line: migrate.Line, settings: Settings, say: Callable[[str], None]) -> None:
    """Migrates, or where that is left to people requires that it was done. Raises SchemaError."""
    if settings.database.migrate == "auto":
        migrate.migrate(conn, line, say=say)
    else:
        migrate.require_current(conn, line)


def sync_queues(conn: Connection, settings: Settings) -> None:
    """Makes the configured queues known to the database. Raises ConfigError when a queue has other slots there."""
    statements = Statements(settings.database.schema)
    problems = []
    for name, queue in settings.queues.items():
        row = conn.execute(
            statements["sync_queue"],
            {
                "queue": name,
                "slots": queue.slots,
                "keep_hours": msgspec.json.encode(settings.keep_hours(name)).decode(),
                "channel": wake.channel(settings.database.schema, name),
            },
        ).fetchone()
        if row is not None and row[0] != queue.slots:
            problems.append(
                f"queues.{name}.slots = {queue.slots}, but the database has {row[0]}: serial keys are hashed by it, so "
                f"it is fixed at the first start; write slots = {row[0]}"
            )
    if problems:
        raise ConfigError(problems)


def sync_kinds(conn: Connection, settings: Settings, kinds: Iterable[Kind]) -> None:
    """Makes kinds known to callers without Python: the SQL function `enqueue`, and schedules."""
    statements = Statements(settings.database.schema)
    with conn.transaction():
        rows = [row for kind in kinds for row in kind.described(args_bytes_max=settings.insert.args_bytes_max)]
        # by name, aliases among them: two masters that start at once must not lock each other out
        for row in sorted(rows, key=lambda row: row["name"]):
            conn.execute(statements["sync_kind"], row)


def sync_schedules(
    conn: Connection, settings: Settings, recurring: Mapping[str, tuple[Source, Schedule]], say: Callable[[str], None]
) -> None:
    """Writes down the recurring jobs of code and configuration; what the API has set under their names stays."""
    statements = Statements(settings.database.schema)
    with conn.transaction():
        for name, (source, schedule) in sorted(recurring.items()):
            conn.execute(statements["schedule_set"], columns(name, source, schedule))
        found = conn.execute(statements["schedule_sources"], {"names": list(recurring)}).fetchall()
    for name, source in found:
        if source == "api":
            say(
                f"schedule {name} was set by a client, which counts more than its declaration; "
                f"`wqcore schedules delete {name}` and a new start give it back"
            )


def bring_all(settings: Settings, dsn: str, say: Callable[[str], None]) -> None:
    """Makes wqcore's schema and those that the program has declared ready, and its kinds known. Raises as `prepare`."""
    prepare(settings, dsn, say)
    for name, part, where in parts(settings, dsn):
        conn = connect_sync(where, part.database, name="wqcore launch")
        try:
            _declare_kinds(conn, part, name, say)
        finally:
            conn.close()


def _declare_kinds(conn: Connection, settings: Settings, name: str, say: Callable[[str], None]) -> None:
    """The program's own schemas, which are in [database], then its kinds, which everyone may insert."""
    if name == HOME:
        for line in migrate.declared_lines():
            bring(conn, line, settings, say)
    sync_kinds(conn, settings, catalog)


def run(settings: Settings, dsn: str, say: Callable[[str], None]) -> int:
    """Runs a master until it is drained; the exit code. `dsn` is that of [database], whichever it runs queues of.

    Raises PreloadError or ConfigError before anything is forked.
    """
    queues = settings.queues_here()
    if not queues:
        raise ConfigError(["no queue is configured: add a table such as [queues.default]"])
    setproctitle("wqcore: master starting")
    taken = None if settings.watch.port is UNSET else watch_port.problem(settings.watch.host, settings.watch.port)
    if taken:
        raise ConfigError([taken])
    watched = [] if settings.watch.port is UNSET else WATCH_MODULES
    modules = [*CHILD_MODULES, *watched, *(settings.process.handlers if settings.process.preload else [])]
    preload(modules, timeout_s=settings.process.boot_timeout_s)
    if settings.process.preload and settings.process.handlers and not len(catalog):
        raise ConfigError(
            [f"process.handlers = {settings.process.handlers} declare no kind: put @wqcore.kind on an args type there"]
        )
    use_app_settings(settings.app)
    wrong = app_problems()
    if wrong:
        raise ConfigError(wrong)
    name, part, where = here(settings, dsn)
    _declare(settings, name, where, say)
    group = settings.process.group if isinstance(settings.process.group, str) else "all queues"
    title = f"wqcore: master {group}"
    setproctitle(title)
    from wqcore.proc.entry import Program  # imported by the preload above; its import opens no connection

    page = _page(settings)
    orders = Orders(
        places=places(settings),
        worker_entry="wqcore.proc.entry:worker",
        keeper_entry="wqcore.proc.entry:keeper",
        program=Program(part, where, str(uuid.uuid4()), VERSION, settings, dsn, name, page),
        drain_timeout_s=settings.process.drain_timeout_s,
        cancel_grace_s=settings.process.cancel_grace_s,
        boot_timeout_s=settings.process.boot_timeout_s,
        loop_stuck_s=settings.process.loop_stuck_s,
        dead_after_s=settings.process.dead_after_s,
        recycling=recycling(settings.process),
        page=page,
    )
    return Master(orders, title=setproctitle, say=say).run()


def _page(settings: Settings) -> Page | None:
    """Where the processes of this master count, when somebody can ask."""
    if settings.watch.port is UNSET:
        return None
    names = [place.name for place in places(settings)]
    kinds = [kind.name for kind in catalog] if settings.process.preload else None
    return Page(queues=list(settings.queues_here()), places=names, kinds=kinds, segments=sheets_of(len(names)))


def _declare(settings: Settings, name: str, dsn: str, say: Callable[[str], None]) -> None:
    """Tells the database what modules and configuration declare; the connection is closed before the fork.

    Raises ConfigError for a schedule whose kind, args or queue do not fit.
    """
    if settings.process.preload:
        found = problems(settings)
        if found:
            raise ConfigError(found)
    elif settings.process.handlers:
        say(NOT_PRELOADED)
    part = settings.part(name)
    conn = connect_sync(dsn, part.database, name="wqcore launch")
    try:
        _declare_kinds(conn, part, name, say)
        sync_schedules(conn, part, declared_at(settings, name), say)
    finally:
        conn.close()


def recycling(process: Process) -> Recycling:
    """When workers are replaced; nothing is, unless the configuration says so."""
    memory_mb, after_s, after_jobs = process.memory_soft_mb, process.recycle_after_s, process.recycle_after_jobs
    return Recycling(
        None if isinstance(memory_mb, UnsetType) else memory_mb << 20,
        None if isinstance(after_s, UnsetType) else after_s,
        None if isinstance(after_jobs, UnsetType) else after_jobs,
    )


def places(settings: Settings) -> list[Place]:
    """One place a worker process; the workers of a queue are split evenly over its processes."""
    found = []
    for name, queue in settings.queues_here().items():
        count = queue.process_count()
        for number in range(count):
            workers = queue.workers // count + (1 if number < queue.workers % count else 0)
            found.append(Place(f"{name}/{number}", name, workers))
    return found
