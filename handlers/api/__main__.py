"""`python -m handlers.api --config FILE [--port N]` serves the platform's HTTP side until TERM or Ctrl-C.

Once it accepts connections it prints `{"port": …}`, its only line on standard output, for programs that start it.
Exit codes: 0 stopped · 2 wrong usage or configuration · 3 the database cannot be used.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
import uvloop

import handlers  # noqa: F401 (declares the kinds, the settings and the tables)
import wqcore
from handlers import api
from handlers.api.app import make_server, serve

EXIT_USAGE, EXIT_DATABASE = 2, 3

logger = logging.getLogger("handlers.api")


def main(
    config: Annotated[Path, typer.Option("--config", "-c", help="The TOML file.")] = Path("conf/dev.toml"),
    port: Annotated[int | None, typer.Option(help="Instead of app.api.port; 0: any free one.")] = None,
) -> None:
    """Serve the platform's HTTP side until TERM or Ctrl-C."""
    try:
        settings = wqcore.load(config)
        wqcore.set_up_logging(settings.logging)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(settings, port))
    except wqcore.ConfigError as error:
        for problem in error.problems:
            sys.stderr.write(f"error: {problem}\n")
        sys.exit(EXIT_USAGE)
    except (wqcore.DatabaseUnavailable, wqcore.SchemaError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(EXIT_DATABASE)


async def _serve(settings: wqcore.Settings, port: int | None) -> None:
    async with wqcore.attached(settings, say=logger.info):
        options = api.settings()
        await serve(make_server(options if port is None else msgspec.structs.replace(options, port=port), _listening))
    logger.info("stopped")


def _listening(port: int) -> None:
    sys.stdout.write(f'{{"port": {port}}}\n')
    sys.stdout.flush()


if __name__ == "__main__":
    typer.run(main)
