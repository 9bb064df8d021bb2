"""`wqcore`, `wqcore run`, `wqcore check-config`: the workers, and whether their configuration is right."""

from __future__ import annotations

import signal
from typing import Annotated

import typer

from wqcore import launch
from wqcore.catalog import catalog
from wqcore.cli import front
from wqcore.errors import ConfigError
from wqcore.proc.preload import preload
from wqcore.recurring import declared
from wqcore.recurring import problems as schedule_problems
from wqcore.resource import app_problems, use_app_settings
from wqcore.version import VERSION
from wqcore.watch.log import set_up_logging


@front.app.callback()
def choose(
    context: typer.Context,
    config: front.ConfigOption = None,
    group: Annotated[str | None, typer.Option(help="Run only the queues of this group.")] = None,
    database: Annotated[str | None, typer.Option(help="Ask this one of [databases]; `default` is [database].")] = None,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Options that every command shares."""
    if version:
        front.out.print(f"wqcore {VERSION}")
        raise typer.Exit
    if config is not None:
        front.Choices.config = config
    front.Choices.group = group
    front.Choices.database = database
    if context.invoked_subcommand is None:
        run()


@front.app.command()
def run(
    config: front.ConfigOption = None, group: Annotated[str | None, typer.Option(help="Only this group.")] = None
) -> None:
    """Run the workers until TERM or Ctrl-C drains them."""
    settings = front.settings(config, group)
    set_up_logging(settings.logging)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # until the master takes its signals over
    try:
        with launch.database(settings) as dsn:
            _, part, where = launch.here(settings, dsn)
            launch.prepare(part, where, front.say)
            code = launch.run(settings, dsn, front.say)
    except KeyboardInterrupt:
        front.say("stopped before the workers were started")
        code = 0
    raise typer.Exit(code)


@front.app.command("check-config")
def check_config(config: front.ConfigOption = None, as_json: front.JsonOption = False) -> None:
    """Check the configuration and the handlers it names; touches no database."""
    settings = front.settings(config)
    preload(settings.process.handlers, timeout_s=settings.process.boot_timeout_s)
    problems = [
        f"kind {kind.name!r} goes to queue {kind.queue!r}, which has no [queues.{kind.queue}]"
        for kind in catalog
        if kind.queue not in settings.queues
    ]
    problems += [
        f"kind {kind.name!r} has no handler: import the module that has it, or declare the kind with planned=True"
        for kind in catalog
        if kind.handler is None and not kind.planned
    ]
    problems += [
        f"logging.kinds.{name}: no module declares a kind of that name; check the spelling, or remove the table"
        for name in settings.logging.kinds
        if name not in {kind.name for kind in catalog}
    ]
    problems += schedule_problems(settings)
    use_app_settings(settings.app)
    problems += app_problems()
    if problems:
        raise ConfigError(problems)
    if as_json:
        places = [{"place": one.name, "workers": one.workers, "queue": one.queue} for one in launch.places(settings)]
        kinds = {kind.name: kind.queue for kind in catalog}
        front.print_json({"places": places, "kinds": kinds, "schedules": sorted(declared(settings))})
        return
    for place in launch.places(settings):
        queue = place.queue or ""
        of = f", database {settings.database_of(queue)}" if settings.databases else ""
        front.out.print(f"{place.name}: {place.workers} workers, group {settings.group_of(queue)}{of}")
    planned = sum(kind.planned for kind in catalog)
    recurring = declared(settings)
    front.out.print(
        f"ok: {len(settings.queues)} queues, {len(catalog)} kinds ({planned} of them planned), {len(recurring)} schedules"
    )
    if not settings.process.preload and any(source == "code" for source, _ in recurring.values()):
        front.say(launch.NOT_PRELOADED)
