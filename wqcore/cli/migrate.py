"""`wqcore migrate`: the schema, the queues, the kinds and the roles."""

from __future__ import annotations

import sys
from typing import Annotated, Any, NamedTuple

import typer

from wqcore import launch
from wqcore.catalog import catalog
from wqcore.cli import front
from wqcore.db import migrate as migrations
from wqcore.db import roles
from wqcore.db.connect import connect_sync
from wqcore.proc.preload import preload
from wqcore.resource import use_app_settings
from wqcore.settings import HOME, Settings


@front.app.command()
def migrate(
    config: front.ConfigOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be applied.")] = False,
    show_sql: Annotated[
        bool, typer.Option("--show-sql", help="Print the SQL of what is pending; apply nothing.")
    ] = False,
    with_roles: Annotated[
        bool,
        typer.Option(
            "--roles", help="Also make the roles <schema>_owner, _runner, _inserter, _producer and _observer."
        ),
    ] = False,
    as_json: front.JsonOption = False,
) -> None:
    """Bring the database schema to this version, and make the configured queues and kinds known."""
    settings = front.settings(config)
    preload(settings.process.handlers, timeout_s=settings.process.boot_timeout_s)
    use_app_settings(settings.app)
    with launch.database(settings) as dsn:
        found = {}
        for name, part, where in launch.parts(settings, dsn):
            if settings.databases:
                front.say(f"database {name}:")
            # a program's own tables are in [database]
            own = migrations.declared_lines() if name == HOME else []
            lines = [migrations.queue_line(part.database.schema), *own]
            plan = Plan(dry_run=dry_run, show_sql=show_sql, with_roles=with_roles, as_json=as_json)
            found[name] = _bring(part, where, lines, plan)
    if as_json:
        front.print_json(found if settings.databases else found[HOME])


class Plan(NamedTuple):
    """What the options ask for."""

    dry_run: bool
    show_sql: bool
    with_roles: bool
    as_json: bool


def _bring(settings: Settings, dsn: str, lines: list[migrations.Line], plan: Plan) -> dict[str, Any]:
    """One database; what was done, for programs."""
    conn = connect_sync(dsn, settings.database, name="wqcore migrate")
    only_say = plan.dry_run or plan.show_sql
    found: dict[str, Any] = {"schemas": {}, "applied": not only_say, "roles": {}}
    try:
        migrated = False
        for line in lines:
            if only_say:
                steps = migrations.pending(conn, line)
                if plan.show_sql and plan.as_json:
                    found["sql"] = found.get("sql", "") + migrations.show(line, steps)
                elif plan.show_sql:
                    sys.stdout.write(migrations.show(line, steps))
                for step in steps:
                    front.say(f"would apply {step.version:04d} {step.name} to schema {line.schema}")
            else:
                steps = migrations.migrate(conn, line, say=front.say)
                migrated = migrated or bool(steps)
            found["schemas"][line.schema] = [f"{step.version:04d} {step.name}" for step in steps]
            if not steps:
                front.say(f"schema {line.schema} is up to date (version {len(line.steps())})")
        if not only_say:
            launch.sync_queues(conn, settings)
            launch.sync_kinds(conn, settings, catalog)
            queue_schema = settings.database.schema
            if plan.with_roles or (migrated and roles.exist(conn, queue_schema)):
                for what, role in roles.make_roles(conn, queue_schema).items():
                    front.say(f"role {role} {roles.ROLES[what]}")
                    found["roles"][what] = role
    finally:
        conn.close()
    return found
