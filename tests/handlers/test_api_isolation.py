"""A key sees and changes nothing of another environment, whatever the route: what is not yours is not there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from handlers import ids
from handlers.api.app import make_app
from handlers.api.front import Keyed
from tests.fix_api import ApiServer, api
from tests.fix_pg import empty_dsn, pg
from tests.fix_platform import platform

__all__ = ["api", "empty_dsn", "pg", "platform"]

CRON = {"id": "k", "type": "cron", "options": {"cron": "* * * * *"}}
DYNAMIC = {
    "rule": {"event": "x", "source": "s", "payload": {}},
    "source": {
        "version": "2", "key": "k", "channel": "HTTP", "params": {}, "options": {"event": ["x"]},
        "integration": {"id": "i", "metadata": {"id": "i", "name": "I"}, "authSource": "LOCAL"},
    },
}  # fmt: skip
FOREIGN = {
    "/api/v1/runs/{run}/tasks": {"idempotencyKey": "new"},
    "/api/v1/runs/{run}/tasks/{task}/complete": {"output": 1},
    "/api/v1/runs/{run}/tasks/{task}/fail": {"error": {"message": "x"}},
    "/api/v1/runs/{run}/cancel": None,
    "/api/v1/events/{event}/cancel": None,
    "/api/v1/events/{event}/cancel-runs": None,
    "/api/v2/events/{event}": None,
    "/api/v2/runs/{run}": None,
    "/api/v1/jobs/{job}/runs": None,
    "/api/v1/jobs/{job}/cancel-runs": None,
    "/api/v1/jobs/{job}/invoke": {"payload": 1},
    "/api/v1/runs/{run}/statuses/{key}": {"label": "x"},
    "/api/v2/runs/{run}/statuses": None,
    "/api/v2/{client}/sources/{key:path}": {"options": {"event": ["x"]}},
    "/api/v2/{client}/triggers/{trigger}/registrations/{key:path}": DYNAMIC,
    "/api/v1/{client}/schedules/{trigger}/registrations": CRON,
    "/api/v1/{client}/schedules/{trigger}/registrations/{key:path}": None,
}
"""Routes that name something of an environment, with a body that its owner could send."""
OWN = {"/api/v1/events", "/api/v1/events/bulk", "/api/v1/endpoints", "/api/v1/store/{key:path}"}
"""Routes that name nothing, or only what the caller chooses; their own tests show that two environments do not meet."""


@dataclass
class World:
    """Names of everything that a route may name, all of one environment."""

    names: dict[str, str]

    def path(self, template: str) -> str:
        return template.replace("{key:path}", "{key}").format(**self.names)


@pytest_asyncio.fixture
async def world(api: ApiServer) -> World:
    p, run = api.platform, api.add_run()
    made = await api.call("POST", f"/api/v1/runs/{run}/tasks", {"idempotencyKey": "k"})
    event = p.one(
        "select e.event_id from {s}.job_run r join {s}.event_record e on e.id = r.event_id where r.id = %s", run
    )
    endpoint = p.add_endpoint("http://127.0.0.1:1/", "shop")
    p.sql(
        "insert into {s}.trigger_source (id, environment_id, endpoint_id, key, channel) values (%s, %s, %s, 'k', 'HTTP')",
        ids.new("src"), p.environment, endpoint,
    )  # fmt: skip
    for type_ in ("EVENT", "SCHEDULE"):
        p.sql(
            "insert into {s}.dynamic_trigger (id, endpoint_id, environment_id, slug, type) values (%s, %s, %s, 'dyn', %s)",
            ids.new("dyn"), endpoint, p.environment, type_,
        )  # fmt: skip
    p.sql("insert into {s}.run_counter (job_id, last_number) select id, 1 from {s}.job")
    names = {
        "run": run,
        "task": made.body["id"],
        "event": event,
        "job": "hello",
        "client": "shop",
        "trigger": "dyn",
        "key": "k",
    }
    return World(names)


def keyed_routes() -> dict[str, str]:
    """Template → method of all routes that need a key."""
    routes = [route for route in make_app().routes if isinstance(getattr(route, "endpoint", None), Keyed)]
    return {route.path: min(route.methods) for route in routes}  # type: ignore[attr-defined]


async def test_every_route_is_among_those_that_are_tested() -> None:
    assert set(keyed_routes()) == set(FOREIGN) | OWN


@pytest.mark.parametrize("template", FOREIGN)
async def test_what_belongs_to_another_environment_is_404_and_unchanged(
    api: ApiServer, world: World, template: str
) -> None:
    before = state(api)
    method, path, body = keyed_routes()[template], world.path(template), FOREIGN[template]
    answer = await api.call(method, path, *([] if body is None else [body]), key=api.stranger)
    assert (answer.status, "environment of this key" in answer.body["error"]) == (404, True)
    assert state(api) == before
    if template.endswith("invoke"):
        api.platform.sql(
            "insert into {s}.job_alias (job_id, environment_id, name, version_id) "
            "select job_id, environment_id, 'latest', id from {s}.job_version"
        )
    owned = await api.call(method, path, *([] if body is None else [body]))
    assert owned.status == (404 if method == "DELETE" else 200), owned.body


def state(api: ApiServer) -> list[Any]:
    """What the tables hold that a route could change."""
    tables = ["job_run", "task", "task_attempt", "event_record", "run_status", "trigger_source", "source_event"]
    found: list[Any] = [
        api.platform.sql(f"select * from {{s}}.{table} order by 1, 2, 3") for table in [*tables, "schedule_source"]
    ]
    return [*found, api.platform.sql("select kind, args::text from {wq}.job order by id")]
