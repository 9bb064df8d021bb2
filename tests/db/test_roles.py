"""Each role may do what its work needs and nothing else: a table of actions, tried by real logins."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from tests.fix_pg import ODD_SCHEMAS, Fresh
from tests.fix_roles import drop_roles, let_create, logins
from wqcore import Client, SyncClient, Unique
from wqcore.backoff import river
from wqcore.catalog import Catalog, Kind
from wqcore.db import migrate, roles
from wqcore.db.statements import Statements, names
from wqcore.errors import NotPermitted, SchemaError
from wqcore.settings import Settings
from wqcore.watch import status

Connection = psycopg.Connection[Any]
Login = Callable[..., Connection]
DENIED = psycopg.errors.InsufficientPrivilege
WHAT = ("owner", "runner", "inserter", "producer", "observer")


class Note(msgspec.Struct):
    n: int = 0


@pytest.fixture
def made(database: Fresh) -> Iterator[dict[str, str]]:
    """The roles of a database that knows the kind `note` and has a job in each table of jobs."""
    database.sql(
        "insert into {s}.kind (name, stands_for, queue, priority, max_attempts) values ('note', 'note', 'default', 1, 3)"
    )
    database.sql("select {s}.enqueue('note', '{{\"n\": 1}}', job_key => 'k')")
    database.sql("select {s}.cancel({s}.enqueue('note'))")
    yield roles.make_roles(database.conn, database.schema)
    drop_roles(database.conn, database.schema)


@pytest.fixture
def login(database: Fresh) -> Iterator[Login]:
    with logins(database.conn, database.dsn) as connect:
        yield connect


def allowed(conn: Connection, schema: str, action: str) -> bool:
    """Whether the action is permitted; it is undone. What fails for another reason than a right was not what we meant."""
    with conn.transaction(force_rollback=True):
        try:
            with conn.transaction():
                conn.execute(sql.SQL(action).format(s=sql.Identifier(schema)))  # type: ignore[arg-type]
        except DENIED:
            return False
    return True


O, R, I, P, W = WHAT  # noqa: E741 - a column each
ACTIONS: dict[str, set[str]] = {
    # jobs
    "select {s}.enqueue('note', '{{\"n\": 1}}')": {O, R, I, P},
    "select {s}.enqueue('note', unique_by => '{{\"states\": [\"cancelled\"]}}')": {O, R, I, P},
    "select * from {s}.insert_keyed('default', 0, 1, null, 'note', 1, null, null, '{{}}', 'k', 'replace', null, null)":
        {O, R, I},
    "insert into {s}.job (queue, slot, kind, args) values ('default', 0, 'note', '{{}}') returning id": {O, R, I},
    "insert into {s}.job (id, queue, slot, kind, args) values (5, 'default', 0, 'note', '{{}}')": {O, R},
    "insert into {s}.job (queue, slot, kind, args, attempt) values ('default', 0, 'note', '{{}}', 2)": {O, R},
    "insert into {s}.job (queue, slot, kind, args, job_key) values ('default', 0, 'note', '{{}}', 'j')": {O, R},
    "select id from {s}.job": {O, R, I, W},
    "select queue, kind, run_at, serial_key from {s}.job": {O, R, W},
    "select args from {s}.job": {O, R},
    "select errors from {s}.job": {O, R},
    "select * from {s}.job for update": {O, R},
    "update {s}.job set priority = 5": {O, R},
    "delete from {s}.job": {O, R},
    "truncate {s}.job": {O},
    # their history
    "select id, kind, outcome, finished_at from {s}.history": {O, R, W},
    "select args, output, errors from {s}.history": {O, R},
    "select log from {s}.history": {O, R},
    "delete from {s}.history": {O, R},
    "delete from {s}.history_other": {O, R},
    "update {s}.history_other set kind = 'x'": {O},
    "update {s}.expired set xid = 9": {O, R},
    # the view
    "select id, kind, queue, state, attempt, progress from {s}.jobs": {O, R, W},
    "select state, count(*) from {s}.jobs group by 1": {O, R, W},
    "select args from {s}.jobs": {O, R},
    "select output from {s}.jobs": {O, R},
    "select progress_note from {s}.jobs": {O, R},
    "select * from {s}.jobs": {O, R},
    # queues and masters
    "select name, slots from {s}.queue": {O, R, I, W},
    "select * from {s}.queue": {O, R, W},
    "select count(*) from {s}.kind": {O, R, W},
    "select count(*) from {s}.process": {O, R, W},
    "select count(*) from {s}.claim": {O, R, W},
    "update {s}.queue set paused_at = now()": {O, R},
    "insert into {s}.queue (name, slots, channel) values ('new', 1, 'c')": {O, R},
    "delete from {s}.queue": {O},
    "delete from {s}.kind": {O},
    "delete from {s}.slot": {O},
    "update {s}.claim set turn = 1": {O},
    "delete from {s}.shard": {O, R},
    "select name, next_tick from {s}.schedule": {O, R, W},
    "select args from {s}.schedule": {O, R},
    "delete from {s}.schedule": {O, R},
    "select reason from {s}.cancel_request": {O, R},
    "select last_value from {s}.job_id_seq": {O, R, W},
    "select nextval('{s}.job_id_seq')": {O},
    "select setval('{s}.job_id_seq', 1)": {O},
    "select max(version) from {s}.migration": {O, R, I, W},
    "insert into {s}.migration (version, name) values (99, 'x')": {O},
    # functions of control and of retention
    "select {s}.cancel(1)": {O, R},
    "select {s}.pause()": {O, R},
    "select {s}.make_partitions()": {O, R},
    "select {s}.drop_partition('history_20000101')": {O, R},
    "select {s}.summarize_history()": {O, R},
    # what the tables are
    "create table {s}.mine (a integer)": {O},
    "create function {s}.mine() returns integer language sql as 'select 1'": {O},
    "alter table {s}.job add column mine integer": {O},
    "alter table {s}.job disable trigger all": {O},
    "create index on {s}.job (kind)": {O},
    "create trigger mine before insert on {s}.job for each row execute function suppress_redundant_updates_trigger()": {O},
    "create table {s}.child () inherits ({s}.shard)": {O},
    "drop table {s}.job cascade": {O},
    "drop schema {s} cascade": {O},
    "comment on table {s}.job is 'mine'": {O},
    "alter function {s}.enqueue owner to current_user": {O},
    # beyond the schema
    "create schema mine": set(),
    "create role mine": set(),
    "create table public.mine (a integer)": set(),
    "set role postgres": set(),
    "copy (select 1) to program 'true'": set(),
    "select pg_read_file('/etc/passwd')": set(),
    "set session authorization postgres": set(),
}  # fmt: skip
"""Action → the roles that may do it."""


@pytest.mark.parametrize("what", WHAT)
def test_a_login_of_each_role_may_do_what_the_table_says_and_nothing_else(
    database: Fresh, made: dict[str, str], login: Login, what: str
) -> None:
    conn = login(made[what])
    may = {action for action in ACTIONS if allowed(conn, database.schema, action)}
    assert may == {action for action, who in ACTIONS.items() if what in who}


def test_every_table_and_every_right_on_it_is_as_the_files_of_the_roles_say(database: Fresh, made: dict[str, str]) -> None:
    """The table above tries; this one lists, so that a table which a migration adds is not forgotten."""
    rows = database.sql(
        "select c.relname, g.what, p.what from pg_class c "
        " cross join unnest(%s::text[], %s::text[]) as g (role, what) "
        " cross join unnest(array['select', 'insert', 'update', 'delete', 'truncate', 'references', 'trigger']) as p (what) "
        " where c.relnamespace = 'wqcore'::regnamespace and c.relkind in ('r', 'p', 'v') and not c.relispartition "
        "   and has_table_privilege(g.role, c.oid, p.what)",
        list(made.values()), list(made),
    )  # fmt: skip
    of: dict[str, dict[str, str]] = {}
    for table, what, letter in rows:
        of.setdefault(what, {})[table] = "".join(sorted(of.get(what, {}).get(table, "") + letter[0]))
    tables = {row[0] for row in database.sql(
        "select relname from pg_class where relnamespace = 'wqcore'::regnamespace and relkind in ('r', 'p', 'v') "
        "and not relispartition")}  # fmt: skip
    assert set(of["owner"]) == tables
    assert "inserter" not in of  # it has rights on columns only
    assert "producer" not in of
    assert set(of["observer"].values()) == {"s"}
    everything = "disu"
    assert of["runner"] == {
        "job": everything, "history": everything, "process": everything, "shard": everything, "permit": everything,
        "progress": everything, "schedule": everything, "claim": "dis", "cancel_request": "dis", "queue": "isu",
        "slot": "isu", "kind": "isu", "declaration": "is", "expired": "su", "migration": "s", "jobs": "s",
    }  # fmt: skip


def test_a_runner_may_send_every_statement_of_the_engine(database: Fresh, made: dict[str, str], login: Login) -> None:
    """PREPARE does not ask for rights, so each is planned and started: EXPLAIN of a generic plan needs no values."""
    conn = login(made["runner"])
    statements = Statements(database.schema)
    own = {"copy", "travel"}  # copy is tried below; only tests travel in time, and they may as well be the owner
    denied = []
    for number, name in enumerate(sorted(set(names()) - own)):
        text = statements[name].decode()
        place = 0
        for param in dict.fromkeys(part.split(")s")[0] for part in text.split("%(")[1:]):
            place += 1
            text = text.replace(f"%({param})s", f"${place}")
        text = text.replace("%%", "%")
        try:
            conn.execute(f"prepare s{number} as {text}".encode())
            conn.execute("set plan_cache_mode = force_generic_plan")
            conn.execute(f"explain execute s{number}{'(' + ', '.join(['null'] * place) + ')' if place else ''}".encode())
        except DENIED as error:
            denied.append((name, str(error)))
    assert denied == []


@pytest.fixture
def catalog() -> Catalog:
    found = Catalog()
    found.declare(
        Kind(
            "note", Note, queue="default", serial_key=None, priority=1, max_attempts=3, timeout_s=60, backoff=river,
            planned=False,
        )
    )  # fmt: skip
    return found


@pytest.mark.parametrize("schema", ["wqcore", *ODD_SCHEMAS], indirect=True)
def test_an_inserter_inserts_in_every_way_that_the_python_clients_have_and_reads_nothing(
    database: Fresh, made: dict[str, str], login: Login, catalog: Catalog
) -> None:
    conn = login(made["inserter"])
    dsn = make_conninfo(database.dsn, user=conn.info.user)
    before = database.one("select count(*) from {s}.job")
    with SyncClient(dsn=dsn, schema=database.schema, catalog=catalog) as client:
        client.insert(Note(1))
        client.insert(Note(2), serial_key="s", metadata={"a": 1}, priority=7)
        assert client.insert(Note(3), job_key="mine") == client.insert(Note(4), job_key="mine")
        assert client.insert(Note(5), unique=Unique()) == client.insert(Note(5), unique=Unique())
        assert client.insert_many([Note(6), Note(7)]) == 2
        with conn.transaction():
            client.insert_tx(conn, Note(8))
        client.enqueue("note", {"n": 9})
        for forbidden in (
            lambda: client.job(1), lambda: client.cancel(1), lambda: client.dequeue("mine"), lambda: client.pause("default"),
            lambda: client.jobs(),
        ):  # fmt: skip
            with pytest.raises(NotPermitted, match=r"permission denied.*schema.*migrate --roles"):
                forbidden()

    async def with_asyncio() -> None:
        async with Client(dsn=dsn, schema=database.schema, catalog=catalog) as client:
            await client.insert(Note(10))
            await client.insert_many([Note(11)])

    asyncio.run(with_asyncio())
    assert database.one("select count(*) from {s}.job") == before + 10


def test_an_observer_gets_the_status_and_no_args(database: Fresh, made: dict[str, str], login: Login) -> None:
    conn = login(made["observer"])
    found = status.read(database.settings, make_conninfo(database.dsn, user=conn.info.user))
    assert {row["queue"]: row["ready"] for row in found["queues"]}["default"] == 1
    assert found["last_hour"] == {"cancelled": 1}
    with pytest.raises(NotPermitted, match="runner"), SyncClient(database.settings, dsn=conn.info.dsn) as client:
        client.job(1)


def test_a_producer_who_asks_for_the_status_is_told_that_he_may_not(
    database: Fresh, made: dict[str, str], login: Login
) -> None:
    conn = login(made["producer"])
    with pytest.raises(NotPermitted, match=r"permission denied for table queue.*'wqcore'.*observer"):
        status.read(database.settings, make_conninfo(database.dsn, user=conn.info.user))


# --- the owner -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schema", ["wqcore", *ODD_SCHEMAS], indirect=True)
def test_everything_in_the_schema_belongs_to_the_owner(database: Fresh, made: dict[str, str]) -> None:
    strangers = database.sql(
        "select c.relname::text from pg_class c where relnamespace = %(s)s::regnamespace and relowner <> %(o)s::regrole "
        "union all select proname from pg_proc where pronamespace = %(s)s::regnamespace and proowner <> %(o)s::regrole "
        "union all select nspname from pg_namespace where oid = %(s)s::regnamespace and nspowner <> %(o)s::regrole"
        .replace("%(s)s", "%s").replace("%(o)s", "%s"),
        *[quoted for _ in range(3) for quoted in (_quoted(database.schema), _quoted(made["owner"]))],
    )  # fmt: skip
    assert strangers == []
    assert database.one("select has_database_privilege(%s, current_database(), 'create')", made["owner"]) is False


def _quoted(name: str) -> str:
    return sql.Identifier(name).as_string(None)


def test_a_member_of_the_owner_migrates_and_what_he_adds_has_the_same_owner_and_rights(
    empty_dsn: str, login: Login, database: Fresh
) -> None:
    """The schema of an older release, made by an administrator, with its roles; then an upgrade by a login of the owner."""
    line = migrate.queue_line("wqcore")
    database.conn.execute("drop schema wqcore cascade")
    steps = line.steps()
    for step in steps[:-1]:
        migrate._apply(database.conn, line, step)
    try:
        names = {what: roles.role_of("wqcore", what) for what in WHAT}
        roles._make(database.conn, list(names.values()))
        roles._hand_over(database.conn, "wqcore", names["owner"])
        member, stranger = login(names["owner"]), login()
        with pytest.raises(SchemaError, match=r"may not migrate.*belongs to 'wqcore_owner'.*member"):
            migrate.migrate(stranger, line)
        assert roles.exist(member, "wqcore")
        assert [step.version for step in migrate.migrate(member, line)] == [steps[-1].version]
        assert member.execute("select current_user").fetchone() == (member.info.user,)
        assert roles.make_roles(member, "wqcore") == names
        owners = database.sql(
            "select distinct pg_get_userbyid(relowner) from pg_class where relnamespace = 'wqcore'::regnamespace "
            "union select distinct pg_get_userbyid(proowner) from pg_proc where pronamespace = 'wqcore'::regnamespace"
        )
        assert owners == [(names["owner"],)]
        assert allowed(login(names["runner"]), "wqcore", "select {s}.summarize_history()")
    finally:
        drop_roles(database.conn, "wqcore")


def test_the_owner_of_a_database_who_is_no_superuser_makes_the_roles_and_may_migrate_again(
    database: Fresh, login: Login
) -> None:
    """As on a managed server, where nobody is a superuser."""
    conn = login(attributes="createrole")
    name = f"managed {os.getpid()}"
    database.conn.execute(
        sql.SQL("alter database {} owner to {}").format(
            sql.Identifier(database.conn.info.dbname), sql.Identifier(conn.info.user)
        )
    )
    try:
        migrate.migrate(conn, migrate.queue_line(name))
        made = roles.make_roles(conn, name)
        assert roles.exist(conn, name)
        assert roles.make_roles(conn, name) == made
        assert migrate.migrate(conn, migrate.queue_line(name)) == []
        assert database.one("select has_database_privilege(%s, current_database(), 'create')", made["owner"]) is False
        assert database.one("select nspowner::regrole::text from pg_namespace where nspname = %s", name) == _quoted(made["owner"])
    finally:
        database.conn.execute(
            sql.SQL("alter database {} owner to postgres").format(sql.Identifier(database.conn.info.dbname))
        )
        drop_roles(database.conn, name)


def test_who_may_not_create_roles_is_told_what_an_administrator_must_run(database: Fresh, login: Login) -> None:
    conn = login()
    name = f"owned {os.getpid()}"
    let_create(database.conn, conn.info.user)
    migrate.migrate(conn, migrate.queue_line(name))
    with pytest.raises(SchemaError, match=r"may not create roles.*create role .* nologin.*grant .*_owner.*repeat") as caught:
        roles.make_roles(conn, name)
    try:
        database.conn.execute(str(caught.value).split("run '")[1].split("' once")[0])  # type: ignore[arg-type]
        with pytest.raises(SchemaError, match=r"may not give schema .* repeat this as a superuser"):
            roles.make_roles(conn, name)
        roles.make_roles(database.conn, name)
        with pytest.raises(SchemaError, match="may not give schema"):
            roles.make_roles(login(), name)
    finally:
        drop_roles(database.conn, name)


def test_a_runner_drops_no_partition_but_one_whose_day_is_over(
    database: Fresh, made: dict[str, str], login: Login
) -> None:
    conn = login(made["runner"])
    database.sql(
        "create table {s}.history_20000101 partition of {s}.history "
        "for values from ('2000-01-01 00:00+00') to ('2000-01-02 00:00+00')"
    )
    database.sql(f"alter table {{s}}.history_20000101 owner to {made['owner']}")
    database.sql("create table {s}.history_20000102 (mine integer)")
    [(today,)] = database.sql("select 'history_' || to_char(now() at time zone 'UTC', 'YYYYMMDD')")
    for name in (today, "history_20000102", "history_other", "job", "history_20000101; drop table wqcore.job", "", None):
        assert conn.execute("select wqcore.drop_partition(%s)", (name,)).fetchone() in [(False,), (None,)], name
    assert conn.execute("select wqcore.drop_partition('history_20000101')").fetchone() == (True,)
    assert conn.execute("select wqcore.drop_partition('history_20000101')").fetchone() == (False,)
    left = {row[0] for row in database.sql("select relname from pg_class where relnamespace = 'wqcore'::regnamespace")}
    assert {today, "history_20000102", "history_other", "job"} <= left
    assert "history_20000101" not in left
    with pytest.raises(DENIED):
        conn.execute("drop table wqcore.history_20000102")


def test_making_the_roles_again_takes_back_what_was_granted_too_much(
    database: Fresh, made: dict[str, str], login: Login
) -> None:
    conn = login(made["observer"])
    for text in (
        "grant all on all tables in schema {s}", "grant all on all functions in schema {s}", "grant all on schema {s}",
        "grant update (args) on {s}.job",
    ):  # fmt: skip
        database.conn.execute(
            sql.SQL(text + " to {r}").format(s=sql.Identifier("wqcore"), r=sql.Identifier(made["observer"]))  # type: ignore[arg-type]
        )
    for wrong in ("update {s}.job set args = '{{}}'", "select {s}.pause()", "create table {s}.x (a integer)"):
        assert allowed(conn, "wqcore", wrong)
    roles.make_roles(database.conn, "wqcore")
    for wrong in ("update {s}.job set args = '{{}}'", "select {s}.pause()", "create table {s}.x (a integer)"):
        assert not allowed(conn, "wqcore", wrong)
    assert allowed(conn, "wqcore", "select id from {s}.jobs")


def test_a_search_path_of_the_runner_leads_no_function_with_its_owners_rights_astray(
    database: Fresh, made: dict[str, str], login: Login
) -> None:
    conn = login(made["runner"])
    let_create(database.conn, conn.info.user)
    conn.execute("create schema trap")
    conn.execute("create temp table stolen (what text)")
    for signature in ("now() returns timestamptz", "to_regclass(text) returns regclass", "format(text, text) returns text"):
        conn.execute(
            f"create function trap.{signature} language plpgsql as "  # type: ignore[arg-type]
            "$fn$ begin raise exception 'led astray as %', current_user; end $fn$"
        )
    conn.execute("set search_path = trap, pg_temp, pg_catalog")
    with pytest.raises(psycopg.errors.RaiseException, match="led astray"):
        conn.execute("select now()")  # the trap must work at all
    for call in ("make_partitions()", "drop_partition('history_20000101')", "summarize_history()"):
        conn.execute(f"select * from wqcore.{call}")  # type: ignore[arg-type]


def test_a_master_configured_as_a_producer_is_refused_with_a_sentence(
    database: Fresh, made: dict[str, str], login: Login
) -> None:
    from wqcore import launch

    conn = login(made["observer"])
    settings: Settings = msgspec.structs.replace(
        database.settings, database=msgspec.structs.replace(database.settings.database, migrate="explicit")
    )
    with pytest.raises(NotPermitted, match="runner"):
        launch.prepare(settings, make_conninfo(database.dsn, user=conn.info.user), lambda text: None)
