"""A program of its own beside the workers, such as a web server, uses their settings, resources and client as they do.

`[app]` is checked, an embedded server is started where it is configured, the schemas are brought up to date or required
to be so; at the end the resources are closed. A crash leaves what a crashed worker leaves: connections that the server
closes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from wqcore import launch
from wqcore.client import Client
from wqcore.client.own import current_client, use_database
from wqcore.errors import ConfigError
from wqcore.resource import app_problems, close_resources, use_app_settings
from wqcore.settings import Settings


@asynccontextmanager
async def attached(settings: Settings, *, say: Callable[[str], None] = lambda text: None) -> AsyncIterator[Client]:
    """Makes this process one in which `settings_for`, `resource` and `current_client` work; yields the client.

    Import the modules that declare kinds, settings and migrations before. `say` is told what is migrated. Once a
    process at a time.

    Raises ConfigError, SchemaError or DatabaseUnavailable.
    """
    use_app_settings(settings.app)
    problems = app_problems()
    if problems:
        raise ConfigError(problems)
    with launch.database(settings) as dsn:
        await asyncio.to_thread(launch.bring_all, settings, dsn, say)
        use_database(settings, dsn)
        try:
            yield await current_client()
        finally:
            await close_resources()
            use_database(None)
