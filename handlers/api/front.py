"""Every request gets one answer, in JSON, with an `x-request-id`, and one line in the log without bodies and keys.

What a fault of the database means is said here: it is away or too slow → 503, a value that it cannot hold → 422, what a row
belongs to was deleted meanwhile → 404. Anything else is a fault of ours: 500, and a traceback in the log.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from typing import Final

import psycopg
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import wqcore
from handlers import ids, records
from handlers.api.bodies import Refused, reply
from handlers.api.keys import Keys

logger = logging.getLogger(__name__)

REQUEST_TIMEOUT_S: Final = 10.0
"""For reading, waiting for a connection to the database, and the statements; most take some milliseconds."""
RETRY_AFTER_S: Final = 1
CLIENT_LEFT: Final = 499
"""nginx's status for a caller that did not wait for its answer; only in the log."""
_SANE_ID: Final = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")

KeyedRoute = Callable[[Request, records.Environment], Awaitable[Response]]
OpenRoute = Callable[[Request], Awaitable[Response]]


class Keyed:
    """A route that needs a key: `function(request, environment)`, with a limit on its time. `template` is for the log."""

    def __init__(self, template: str, function: KeyedRoute, keys: Keys, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        self.template = template
        self._function, self._keys, self._timeout_s = function, keys, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        async with asyncio.timeout(self._timeout_s):
            response = await self._function(request, await self._keys.environment(request))
        await response(scope, receive, send)


class Open:
    """A route without a key: `function(request)`, with a limit on its time."""

    timeout_s = REQUEST_TIMEOUT_S

    def __init__(self, template: str, function: OpenRoute) -> None:
        self.template = template
        self._function = function

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with asyncio.timeout(self.timeout_s):
            response = await self._function(Request(scope, receive))
        await response(scope, receive, send)


class Front:
    """The outermost layer around the routes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        started, status, request = time.perf_counter(), 0, Request(scope)
        given = request.headers.get("x-request-id", "")
        request_id = given if _SANE_ID.fullmatch(given) else ids.new("req")

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except ClientDisconnect:
            status = CLIENT_LEFT
        except Exception:  # a fault of one route must not end the server, and its caller is owed an answer
            logger.exception("%s failed, request %s", _template(scope), request_id)
            if not status:
                error = f"this is a fault of the platform; its log says more under request {request_id}"
                await reply({"error": error}, 500)(scope, receive, sending)
        finally:
            took_ms = (time.perf_counter() - started) * 1000
            logger.info("%s %s %d %.1f ms %s", scope["method"], _template(scope), status, took_ms, request_id)


def _template(scope: Scope) -> str:
    """The route, not the path: what stands in a path may be a secret, as an outside service's URL is."""
    return str(getattr(scope.get("endpoint"), "template", "(no route)"))


async def refuse(request: Request, error: Exception) -> Response:
    """The answer that an exception stands for. Raises it again when it stands for none."""
    refused = _meaning(error)
    if refused is None:
        raise error
    body = {"error": refused.error} | ({"field": refused.field} if refused.field else {})
    return reply(body, refused.status, refused.headers)


def _meaning(error: Exception) -> Refused | None:
    match error:
        case Refused():
            return error
        case HTTPException():
            return Refused(error.status_code, error.detail, headers=error.headers)
        case psycopg.DataError():
            return Refused(422, "it holds a value that cannot be stored: a NUL, or a number or time out of range")
        case psycopg.errors.ForeignKeyViolation():
            return Refused(404, "what it belongs to was deleted meanwhile")
        case psycopg.OperationalError() | psycopg.InterfaceError() | wqcore.DatabaseUnavailable() | TimeoutError():
            logger.warning("the database is away or too slow: %s", type(error).__name__)
            return Refused(503, "not available at the moment: try again", headers={"retry-after": str(RETRY_AFTER_S)})
    return None


HANDLED: Final = (
    Refused,
    HTTPException,
    psycopg.Error,
    wqcore.DatabaseUnavailable,
    TimeoutError,
)
"""The exceptions that `refuse` knows an answer to."""
