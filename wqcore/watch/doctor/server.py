"""The server, the way to it, and what its user may do."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import UNSET

from wqcore.client.front import POOL_CONNECTIONS_MAX
from wqcore.db.roles import role_of
from wqcore.watch.doctor.facts import Facts
from wqcore.watch.doctor.finding import Level, check, observing, size

SERVER_MIN = 150_000
AHEAD_REMARK_S = 5.0
ROUND_TRIP_REMARK_S, ROUND_TRIP_PROBLEM_S = 0.005, 0.05
SHARED_BUFFERS_MIN = 64 << 20


@check("program")
def _program(facts: Facts) -> Iterator[tuple[Level, str, str | None]]:
    yield "ok", f"Python {facts.python}, libpq {facts.libpq}", None


@check("server", "server")
def _server(facts: Facts) -> Iterator[tuple[Level, str, str | None]]:
    server = facts.one("server")
    if server["version_num"] < SERVER_MIN:
        yield "problem", f"PostgreSQL {server['version']} is too old", "use PostgreSQL 15 or newer"
    elif server["is_standby"]:
        yield (
            "problem",
            "this server is a standby, which takes no jobs",
            "let database.dsn name the primary, or all hosts",
        )
    elif server["default_transaction_read_only"] == "on":
        fix = "alter database … set default_transaction_read_only = off, or the same for the role or the server"
        yield "problem", "transactions are read-only by default", fix
    else:
        yield "ok", f"PostgreSQL {server['version']} at {facts.where}", None


@check("schema", "schema")
def _schema(facts: Facts) -> Iterator[tuple[Level, str, str | None]]:
    name, there, known = facts.settings.database.schema, facts.schema_version, facts.code_version
    if there == 0 and facts.has_schema:
        yield "unknown", f"the version of the schema {name!r} cannot be seen", observing(facts)
    elif there == 0:
        yield "problem", f"the schema {name!r} is not there", "wqcore migrate"
    elif there < known:
        yield "problem", f"the schema {name!r} has version {there}, this program needs {known}", "wqcore migrate"
    elif there > known:
        fix = "install the release of wqcore that migrated it"
        yield "problem", f"the schema {name!r} has version {there}, this program knows {known}", fix
    else:
        yield "ok", f"{name!r} has version {there}", None


@check("durability", "server")
def _durability(facts: Facts) -> Iterator[tuple[Level, str, str | None]]:
    server = facts.one("server")
    for name in ("fsync", "full_page_writes"):
        if server[name] != "on":
            text = f"{name} is off: a crash of the host can lose or damage everything"
            yield "problem", text, f"alter system set {name} = on; select pg_reload_conf()"
    if server["synchronous_commit"] == "off":
        text = "synchronous_commit is off: a crash of PostgreSQL loses what was acknowledged within the last moments"
        yield "problem", text, "set synchronous_commit = on for this role, database or server"
    elif server["fsync"] == server["full_page_writes"] == "on":
        yield "ok", f"fsync and full_page_writes on, synchronous_commit {server['synchronous_commit']}", None


@check("isolation", "server")
def _isolation(facts: Facts) -> Iterator[tuple[Level, str, str | None]]:
    level = facts.one("server")["default_transaction_isolation"]
    if level != "read committed":
        text = f"transactions are {level} by default: statements of two workers will fail against each other"
        yield "problem", text, "alter role … set default_transaction_isolation = 'read committed'"
    else:
        yield "ok", level, None


@check("role settings", "role_settings")
def _role_settings(facts: Facts) -> Iterator[tuple[Level, str, str | None]]:
    short = [row["setting"] for row in facts.rows["role_settings"] if row["setting"].split("=")[0] in _OVERRIDDEN]
    if short:
        yield (
            "remark",
            f"set for this role or database, and overridden by wqcore's connections: {', '.join(short)}",
            None,
        )
    else:
        yield "ok", "nothing is set that wqcore's connections override", None


_OVERRIDDEN = ("statement_timeout", "idle_in_transaction_session_timeout", "jit")


@check("memory of the server", "server")
def _buffers(facts: Facts) -> Iterator[tuple[Level, str, str | None]]:
    buffers = facts.one("server")["shared_buffers_bytes"]
    if buffers < SHARED_BUFFERS_MIN:
        text = f"shared_buffers is {size(buffers)}: the jobs that wait do not stay in memory"
        yield "remark", text, "alter system set shared_buffers = '256MB' or more, and restart"
    else:
        yield "ok", f"shared_buffers {size(buffers)}", None


@check("connections", "server", "sessions")
def _connections(facts: Facts) -> Iterator[tuple[Level, str, str | None]]:
    settings, sessions, most = facts.settings, facts.one("sessions"), facts.one("server")["connections_max"]
    workers = sum(queue.process_count() for queue in settings.queues.values())
    masters = len({settings.group_of(name) for name in settings.queues})
    each = 1 if settings.watch.port is UNSET else 2  # the keeper's, and that of the survey for metrics
    needed, others = workers + each * masters, sessions["all"] - sessions["ours"]
    handlers = f"; handlers that insert jobs take up to {POOL_CONNECTIONS_MAX} more in each of {workers} workers"
    text = (
        f"one replica of each group takes {needed} of {most} connections, {others} are others' at the moment{handlers}"
    )
    fix = "raise max_connections, lower queues.<name>.processes, or close what others leave open"
    if needed + others > most:
        yield "problem", text, fix
    elif 2 * needed + others > most:
        yield "remark", f"{text}; a rolling deploy needs twice as many for a while", fix
    else:
        yield "ok", text, None


@check("rights", "role")
def _rights(facts: Facts) -> Iterator[tuple[Level, str, str | None]]:
    if not facts.rows["role"]:
        return
    role, schema = facts.one("role"), facts.settings.database.schema
    may = [
        text
        for key, text in (
            ("owns", "own and migrate the schema"),
            ("may_run", "run workers"),
            ("may_insert", "insert"),
            ("may_watch", "watch"),
        )
        if role[key]
    ]
    if role["is_superuser"]:
        text = f"user {role['who']!r} is a superuser, and workers need no such rights"
        fix = f'wqcore migrate --roles, and a login that is a member of "{role_of(schema, "runner")}"'
        yield "remark", text, fix
    elif not role["may_run"]:
        text = f"user {role['who']!r} may {', '.join(may) or 'nothing here'}, but not run workers"
        fix = f'for workers: grant "{role_of(schema, "runner")}" to their login'
        yield "remark", text, fix
    else:
        yield "ok", f"user {role['who']!r} may {', '.join(may)}", None


@check("pooler", "server")
def _pooler(facts: Facts) -> Iterator[tuple[Level, str, str | None]]:
    pooled = facts.one("server")["backend_pid"] != facts.pid_of_protocol
    option = facts.settings.database.pooler
    if pooled and option == "none":
        text = "a pooler stands between: it told another process id than the server's own"
        fix = 'set database.pooler = "transaction", or let database.dsn name the server itself, which is faster'
        yield "problem", text, fix
    elif not pooled and option != "none":
        text = f'database.pooler = "{option}", but nothing seems to stand between: wake-ups are off for nothing'
        yield "remark", text, "remove database.pooler"
    else:
        yield "ok", "a pooler in transaction mode" if pooled else "none", None


@check("encryption", "server")
def _encryption(facts: Facts) -> Iterator[tuple[Level, str, str | None]]:
    server = facts.one("server")
    if server["tls"] or not server["over_tcp"]:
        yield "ok", "TLS" if server["tls"] else "a Unix socket", None
    elif any(local in facts.where for local in ("host=localhost", "host=127.", "host=::1")):
        yield "ok", "TCP on this host", None
    else:
        fix = "sslmode=verify-full and sslrootcert in database.dsn (docs/howto/security.md)"
        yield "remark", "jobs and the password's exchange cross the network in the clear", fix


@check("distance", "server")
def _distance(facts: Facts) -> Iterator[tuple[Level, str, str | None]]:
    text = f"a round trip takes {facts.round_trip_s * 1000:.2f} ms"
    fix = "run the workers nearer to the database: each turn and each insert takes a round trip"
    if facts.round_trip_s > ROUND_TRIP_PROBLEM_S:
        yield "problem", text, fix
    elif facts.round_trip_s > ROUND_TRIP_REMARK_S:
        yield "remark", text, fix
    else:
        yield "ok", text, None


@check("clocks", "server")
def _clocks(facts: Facts) -> Iterator[tuple[Level, str, str | None]]:
    if abs(facts.ahead_s) > AHEAD_REMARK_S:
        text = f"this host's clock is {abs(facts.ahead_s):.1f} s {'ahead of' if facts.ahead_s > 0 else 'behind'} the database's"
        yield "remark", f"{text}: jobs are timed by the database, logs by this host", "let both follow NTP"
    else:
        yield "ok", f"{abs(facts.ahead_s) * 1000:.0f} ms apart", None
