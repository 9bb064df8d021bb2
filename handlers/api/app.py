"""The routes, and the server around them: a request that was begun before TERM is answered before the process ends.

After TERM or Ctrl-C nothing new is accepted; what runs has `app.api.drain_timeout_s`, a second signal ends it at once. A
killed server leaves what a lost connection leaves: a change that was committed, or none.
"""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import wqcore
from handlers import store
from handlers.api import Api, endpoints, events, jobs, keys, runs, schedules, sources, statuses, stored, tasks
from handlers.api.bodies import reply
from handlers.api.front import HANDLED, Front, Keyed, KeyedRoute, Open, refuse

logger = logging.getLogger(__name__)

PING_TIMEOUT_S: Final = 30.0
"""A route that calls a user's server may take that long; a cold serverless function takes seconds."""
KEEP_ALIVE_S: Final = 75
"""Longer than Node's fetch keeps an idle connection (4 s), so that it is the client who closes one."""


def make_app() -> Starlette:
    """The ASGI app; it runs where wqcore's resources do (`wqcore.attached`)."""
    known = keys.Keys()

    def keyed(method: str, path: str, function: KeyedRoute, **options: float) -> Route:
        return Route(path, Keyed(path, function, known, **options), methods=[method])

    app = Starlette(
        routes=[
            Route("/healthz", Open("/healthz", health), methods=["GET"]),
            # no methods: any of them
            Route("/api/v1/sources/http/{source}", Open("/api/v1/sources/http/{source}", sources.accept)),
            keyed("POST", "/api/v1/runs/{run}/tasks", tasks.run_task),
            keyed("POST", "/api/v1/runs/{run}/tasks/{task}/complete", tasks.complete_task),
            keyed("POST", "/api/v1/runs/{run}/tasks/{task}/fail", tasks.fail_task),
            keyed("POST", "/api/v1/events", events.send),
            keyed("POST", "/api/v1/events/bulk", events.send_many),
            keyed("POST", "/api/v1/events/{event}/cancel", events.cancel),
            keyed("POST", "/api/v1/events/{event}/cancel-runs", events.cancel_runs),
            keyed("GET", "/api/v2/events/{event}", events.show),
            keyed("GET", "/api/v2/runs/{run}", runs.show),
            keyed("POST", "/api/v1/runs/{run}/cancel", runs.cancel),
            keyed("GET", "/api/v1/jobs/{job}/runs", jobs.runs),
            keyed("POST", "/api/v1/jobs/{job}/cancel-runs", jobs.cancel_runs),
            keyed("POST", "/api/v1/jobs/{job}/invoke", jobs.invoke),
            keyed("PUT", "/api/v1/runs/{run}/statuses/{key}", statuses.update),
            keyed("GET", "/api/v2/runs/{run}/statuses", statuses.show),
            keyed("GET", "/api/v1/store/{key:path}", stored.get),
            keyed("PUT", "/api/v1/store/{key:path}", stored.put),
            keyed("DELETE", "/api/v1/store/{key:path}", stored.delete),
            keyed("POST", "/api/v1/endpoints", endpoints.add, timeout_s=PING_TIMEOUT_S),
            # the SDK puts keys into the path as they are, with slashes
            keyed("PUT", "/api/v2/{client}/sources/{key:path}", sources.update),
            keyed("PUT", "/api/v2/{client}/triggers/{trigger}/registrations/{key:path}", sources.register_dynamic),
            keyed("POST", "/api/v1/{client}/schedules/{trigger}/registrations", schedules.register),
            keyed("DELETE", "/api/v1/{client}/schedules/{trigger}/registrations/{key:path}", schedules.unregister),
        ],
        middleware=[Middleware(Front)],
        exception_handlers=dict.fromkeys(HANDLED, refuse),
    )
    app.router.redirect_slashes = False
    return app


async def health(request: Request) -> Response:
    """Whether the database answers."""
    db = await store.open_store()
    await db.row("api_health")
    return reply({"ok": True})


class Server(uvicorn.Server):
    """uvicorn's server without its signals: it would kill the process by the one it got, before resources are closed.

    `listening(port)` is called once it accepts connections.
    """

    def __init__(self, config: uvicorn.Config, listening: Callable[[int], None]) -> None:
        super().__init__(config)
        self._listening = listening

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Takes none; see `serve`."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens. Raises wqcore.ConfigError when it cannot."""
        try:
            await super().startup(sockets)
        except SystemExit:  # uvicorn's way to say it
            where = f"{self.config.host}:{self.config.port}"
            raise wqcore.ConfigError([f"app.api: cannot listen on {where}; the line above says why"]) from None
        port = self.servers[0].sockets[0].getsockname()[1]
        logger.info("listening on http://%s:%d", self.config.host, port)
        self._listening(port)


def make_server(options: Api, listening: Callable[[int], None]) -> Server:
    """The server; `await server.serve()` runs it until `server.should_exit` is set."""
    return Server(
        uvicorn.Config(
            make_app(),
            host=options.host,
            port=options.port,
            loop="uvloop",
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=math.ceil(options.drain_timeout_s),
        ),
        listening,
    )


async def serve(server: Server) -> None:
    """Serves until TERM or Ctrl-C."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        server.force_exit = server.should_exit
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        await server.serve()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
