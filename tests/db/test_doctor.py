"""The doctor finds what is really wrong in a database, with few rights too, and its command says so in three ways."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from tests.fix_pg import Fresh
from tests.fix_roles import drop_roles, new_login
from wqcore.db import roles
from wqcore.watch.doctor import Finding, findings, gather

ROOT = Path(__file__).parents[2]
ODD = pytest.mark.parametrize("schema", ["wqcore", 'we"ird; schema'], indirect=True)


def wrong(database: Fresh, dsn: str | None = None) -> dict[str, list[Finding]]:
    """What is not right, by check; not what a database of tests always has: a superuser, no durability, no master."""
    found: dict[str, list[Finding]] = {}
    usual = {"rights", "durability", "masters", "autovacuum of tests"}
    for finding in findings(gather(database.settings, dsn or database.dsn, kinds=["note"])):
        if finding.level != "ok" and finding.check not in usual and "autovacuum is off:" not in finding.text:
            found.setdefault(finding.check, []).append(finding)
    return found


@ODD
def test_a_healthy_database_has_nothing_wrong(database: Fresh) -> None:
    assert wrong(database) == {}


def test_what_tests_switch_off_is_found(database: Fresh) -> None:
    found = {finding.check: finding for finding in findings(gather(database.settings, database.dsn, kinds=["note"]))}
    assert found["durability"].text.startswith("fsync is off")
    assert found["masters"].text == "no master runs"


@pytest.fixture
def second(database: Fresh) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        yield conn


def add(database: Fresh, kind: str = "note") -> None:
    database.sql("insert into {s}.job (queue, slot, kind, args) values ('default', 0, %s, '{{}}')", kind)


SPOILS: dict[str, tuple[str, str, str]] = {
    "drop index {s}.job_ready": ("indexes", "problem", "job_ready is missing"),
    "update pg_index set indisvalid = false where indexrelid = {l}::regclass": ("indexes", "problem", "job_due is invalid"),
    "alter table {s}.job set (autovacuum_enabled = false)": ("autovacuum", "problem", 'off for "wqcore"."job"'),
    "alter table {s}.claim reset (autovacuum_vacuum_threshold)": ("autovacuum", "remark", "other autovacuum settings"),
    "insert into {s}.migration (version, name) values (9001, 'later')": ("schema", "problem", "has version 9001"),
    "delete from {s}.migration where version > 1": ("schema", "problem", "has version 1, this program needs"),
    "update {s}.queue set paused_at = now() where name = 'mail'": ("queues", "remark", "'mail' is paused"),
    "insert into {s}.process (id, host, pid, version, beat_at) values (gen_random_uuid(), 'gone', 7, '0.1.0', now() - interval "
    "'1 hour')": ("masters", "problem", "master 7 on gone has been silent for 60 minutes"),
    "insert into {s}.schedule (name, source, kind, args, every_s, timezone, next_tick, last_error) values ('s', 'api', 'note', "
    "'{{}}', 60, 'UTC', now(), 'no such kind')": ("schedules", "problem", "'s' failed"),
    "insert into {s}.schedule (name, source, kind, args, every_s, timezone, next_tick) values ('s', 'api', 'note', "
    "'{{}}', 60, 'UTC', now() - interval '1 hour')": ("schedules", "problem", "60 minutes late"),
}  # fmt: skip


@pytest.mark.parametrize("spoil", SPOILS)
def test_what_somebody_has_changed_in_the_database_is_found(database: Fresh, spoil: str) -> None:
    check, level, words = SPOILS[spoil]
    due = sql.Literal(f'"{database.schema}".job_due')
    database.conn.execute(sql.SQL(spoil).format(s=sql.Identifier(database.schema), l=due))  # type: ignore[arg-type]
    found = [finding for finding in findings(gather(database.settings, database.dsn, kinds=["note"])) if finding.check == check]
    assert any(finding.level == level and words in finding.text for finding in found), found
    assert all(finding.fix for finding in found if finding.level != "ok")


def test_jobs_without_a_worker_and_of_strange_kinds_are_found(database: Fresh) -> None:
    add(database)
    add(database, "strange")
    found = wrong(database)
    assert found["queues"][0].text == "queue 'default' has 2 jobs that wait and no worker"
    assert found["kinds"][0].text == "waiting jobs of kinds that this program does not know: strange (1)"
    assert set(found) == {"queues", "kinds"}


def test_what_this_role_or_database_has_set_is_found(database: Fresh) -> None:
    name = sql.Identifier(database.conn.info.dbname)
    database.conn.execute(sql.SQL("alter database {} set default_transaction_isolation = 'repeatable read'").format(name))
    database.conn.execute(sql.SQL("alter database {} set jit = on").format(name))
    found = wrong(database)
    assert "repeatable read" in found["isolation"][0].text
    assert "jit=on" in found["role settings"][0].text


def test_a_read_only_database_is_told_from_one_that_is_not_there(database: Fresh) -> None:
    name = sql.Identifier(database.conn.info.dbname)
    database.conn.execute(sql.SQL("alter database {} set default_transaction_read_only = on").format(name))
    assert wrong(database)["server"][0].text == "transactions are read-only by default"


def test_an_old_snapshot_is_named_with_the_statement_that_ends_it(
    database: Fresh, second: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wqcore.watch.doctor.tables.SNAPSHOT_REMARK_S", 0.0)
    second.execute("set application_name = 'night report'")
    second.execute("begin isolation level repeatable read")
    second.execute("select 1 from pg_class")
    [found] = [item for item in wrong(database)["oldest snapshot"] if "night report" in item.text]
    assert found.level == "remark"
    assert found.fix == f"end it: select pg_terminate_backend({second.info.backend_pid})"
    second.execute("rollback")
    assert not any("night report" in item.text for item in wrong(database).get("oldest snapshot", []))


@pytest.fixture
def login(database: Fresh) -> Iterator[Callable[..., str]]:
    """`login("observer")` is the DSN of a fresh user that is a member of this role of the schema."""
    made: list[str] = []

    def fresh(*what: str) -> str:
        made.append(new_login(database.conn, *(roles.role_of(database.schema, role) for role in what)))
        return make_conninfo(database.dsn, user=made[-1])

    roles.make_roles(database.conn, database.schema)
    yield fresh
    for name in made:
        database.conn.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))
    drop_roles(database.conn, database.schema)


@pytest.mark.parametrize("schema", ["doctored"], indirect=True)
def test_with_few_rights_it_says_what_it_could_not_see_and_which_grant_would_show_it(
    database: Fresh, login: Callable[..., str]
) -> None:
    observed = wrong(database, login("observer"))
    assert {check: found[0].level for check, found in observed.items()} == {"oldest snapshot": "unknown", "schedules": "unknown"}
    assert "grant pg_read_all_stats to" in (observed["oldest snapshot"][0].fix or "")
    nobody = wrong(database, login())
    assert {check for check, found in nobody.items() if found[0].level == "unknown"} >= {"schema", "kinds", "queues"}
    assert 'grant "doctored_observer" to "somebody' in (nobody["kinds"][0].fix or "")
    running = findings(gather(database.settings, login("runner"), kinds=["note"]))
    assert [finding.level for finding in running if finding.check == "rights"] == ["ok"]


def doctor(folder: Path, dsn: str, *words: str) -> subprocess.CompletedProcess[str]:
    (folder / "c.toml").write_text("[queues.default]\nslots = 4\n[queues.mail]\nslots = 2\n")
    environ = os.environ | {"WQCORE_DATABASE__DSN": dsn, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    command = [sys.executable, "-m", "wqcore", "doctor", "--config", "c.toml", *words]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=60)


def test_the_command_prints_a_line_for_each_check_and_its_exit_code_tells_problems(database: Fresh, tmp_path: Path) -> None:
    shown = doctor(tmp_path, database.dsn)
    assert shown.returncode == 1
    assert "✗ durability" in shown.stdout
    assert "→ alter system set fsync = on; select pg_reload_conf()" in " ".join(shown.stdout.split())
    assert all(len(line) <= 80 for line in shown.stdout.splitlines())
    assert "\x1b" not in shown.stdout
    found = json.loads(doctor(tmp_path, database.dsn, "--json").stdout)
    assert {"check": "isolation", "level": "ok", "text": "read committed", "fix": None} in found


def test_the_command_without_a_database_says_so_with_its_exit_code_and_no_password(tmp_path: Path) -> None:
    shown = doctor(tmp_path, "host=127.0.0.1 port=1 password=canary-secret")
    assert shown.returncode == 3
    assert "✗ connection" in shown.stdout
    assert "✓ program" in shown.stdout
    assert "canary" not in shown.stdout + shown.stderr
