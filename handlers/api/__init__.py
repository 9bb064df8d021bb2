"""The HTTP side of the platform: `python -m handlers.api --config conf/dev.toml`. Whatever it answered 200 to is committed.

Endpoints call it with `Authorization: Bearer <key of their environment>`, and each statement is told the environment, so a
key sees nothing of another one. Answers are JSON; errors are `{"error": …, "field"?: …}` with 401 (no valid key), 404 (not
there, or not yours), 405, 409 (the run has ended), 413 (too long), 422 (does not fit; `field` is its path) or 503 (try
again). Each has an `x-request-id`, which is taken over from the request.

    POST   /api/v1/runs/:run/tasks                          a task, once for each idempotency key
    POST   /api/v1/runs/:run/tasks/:task/complete, …/fail   its end, once
    POST   /api/v1/events, /api/v1/events/bulk              events, once for each id
    POST   /api/v1/events/:event/cancel                     one that was not delivered yet
    POST   /api/v1/events/:event/cancel-runs                its runs that have not ended
    GET    /api/v2/events/:event                            an event and its runs
    GET    /api/v2/runs/:run                                a run and its tasks
    POST   /api/v1/runs/:run/cancel                         one that has not ended
    GET    /api/v1/jobs/:job/runs                           the runs of a job
    POST   /api/v1/jobs/:job/cancel-runs                    those that have not ended
    POST   /api/v1/jobs/:job/invoke                         a run, once for each idempotency key
    PUT    /api/v1/runs/:run/statuses/:key                  what a run says of itself
    GET    /api/v2/runs/:run/statuses
    GET PUT DELETE HEAD /api/v1/store/:key                  the key-value store of an environment
    POST   /api/v1/endpoints                                an endpoint: pinged, stored, indexed
    PUT    /api/v2/:client/sources/:key                     what the registration of a source came to
    PUT    /api/v2/:client/triggers/:id/registrations/:key
    POST   /api/v1/:client/schedules/:id/registrations
    DELETE /api/v1/:client/schedules/:id/registrations/:key
    any    /api/v1/sources/http/:source                     without a key: a delivery by an outside service
    GET    /healthz                                         without a key: whether the database answers

The SDK 2.3.18 has more calls, which get 404: connections (`/auth/:id`, where 404 means none), ephemeral dispatchers, webhooks
and task callbacks. A task that asks for a callback is refused with 422, for it would be run as if it had none.

A crash before the commit leaves nothing and after it the whole of a change, whose repetition gets the same answer; only an
event that was sent without an id is a second one when it is sent again.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

import wqcore


class Api(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The settings `[app.api]`.

    Attributes:
        host (str): the address to listen on; default 127.0.0.1: what shall be reached from outside is opened on purpose.
        port (int): default 3030; 0 = any free one.
        body_bytes_max (int): a longer body is refused with 413; default 1 MiB.
        drain_timeout_s (float): after TERM, how long requests that have begun may take; default 10.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 3030
    body_bytes_max: Annotated[int, Meta(ge=1024, le=64 << 20)] = 1 << 20
    drain_timeout_s: Annotated[float, Meta(gt=0, le=600)] = 10.0


settings = wqcore.settings_for("api", Api)
