"""`wqcore migrate`: the schema, the queues, the kinds and the roles."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from wqcore import launch
from wqcore.catalog import catalog
from wqcore.cli import front
from wqcore.db import migrate as migrations
from wqcore.db import roles
from wqcore.db.connect import connect_sync
from wqcore.proc.preload import preload
from wqcore.resource import use_app_settings


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
    lines = [migrations.queue_line(settings.database.schema), *migrations.declared_lines()]
    with launch.database(settings) as dsn:
        conn = connect_sync(dsn, settings.database, name="wqcore migrate")
        try:
            migrated = False
            found: dict[str, Any] = {"schemas": {}, "applied": not (dry_run or show_sql), "roles": {}}
            for line in lines:
                if dry_run or show_sql:
                    steps = migrations.pending(conn, line)
                    if show_sql and as_json:
                        found["sql"] = found.get("sql", "") + migrations.show(line, steps)
                    elif show_sql:
                        sys.stdout.write(migrations.show(line, steps))
                    for step in steps:
                        front.say(f"would apply {step.version:04d} {step.name} to schema {line.schema}")
                else:
                    steps = migrations.migrate(conn, line, say=front.say)
                    migrated = migrated or bool(steps)
                found["schemas"][line.schema] = [f"{step.version:04d} {step.name}" for step in steps]
                if not steps:
                    front.say(f"schema {line.schema} is up to date (version {len(line.steps())})")
            if not (dry_run or show_sql):
                launch.sync_queues(conn, settings)
                launch.sync_kinds(conn, settings, catalog)
                queue_schema = settings.database.schema
                if with_roles or (migrated and roles.exist(conn, queue_schema)):
                    for what, role in roles.make_roles(conn, queue_schema).items():
                        front.say(f"role {role} {roles.ROLES[what]}")
                        found["roles"][what] = role
            if as_json:
                front.print_json(found)
        finally:
            conn.close()
