"""Gives `api`: the platform's HTTP side on a free port, in the test's process, and a client that holds a key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec
import pytest_asyncio
from psycopg import sql

from handlers import ids, secrets
from handlers.api import Api
from handlers.api.app import make_server
from tests.fix_platform import Platform

MISSING: Any = object()


@dataclass
class Reply:
    """What came back; `body` is the JSON, or bytes when it is none."""

    status: int
    body: Any
    headers: dict[str, str]


@dataclass
class ApiServer:
    """A listening server.

    Attributes:
        platform: the database behind it.
        stranger (str): the key of another environment of another organization.
    """

    url: str
    platform: Platform
    stranger: str
    http: aiohttp.ClientSession

    async def call(
        self, method: str, path: str, body: Any = MISSING, *, key: str | None = "", data: Any = None, **headers: str
    ) -> Reply:
        """A request with the environment's key (or `key`; None: without one); `headers` with `_` for `-`."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            sent["authorization"] = f"Bearer {key or self.platform.api_key}"
        content = data if body is MISSING else msgspec.json.encode(body)
        async with self.http.request(method, self.url + path, data=content, headers=sent) as response:
            text = await response.read()
            as_json = text and response.content_type == "application/json"
            got = {name.lower(): value for name, value in response.headers.items()}
            return Reply(response.status, msgspec.json.decode(text) if as_json else text, got)

    def add_run(self, *, status: str = "STARTED", job: str = "hello") -> str:
        """A run of a job of the environment, with all that it stands on; its id."""
        p, names = self.platform, {name: ids.new(name) for name in ("queue", "version", "disp", "evt", "run")}
        endpoint, job_id = p.add_endpoint("http://127.0.0.1:1/", ids.new("slug")), ids.new("job")
        text = (
            "with q as (insert into {s}.job_queue (id, environment_id, name, max_jobs) "
            "      values (%(queue)s, %(env)s, %(queue)s, 9)), "
            "j as (insert into {s}.job (id, project_id, slug, title) values (%(job)s, %(project)s, %(slug)s, 'Hello') "
            "      on conflict (project_id, slug) do update set title = excluded.title returning id), "
            "v as (insert into {s}.job_version (id, job_id, environment_id, endpoint_id, queue_id, version, event, trigger) "
            "      select %(version)s, j.id, %(env)s, %(endpoint)s, %(queue)s, %(version)s, '{{}}', '{{}}' from j), "
            "d as (insert into {s}.event_dispatcher (id, environment_id, key, kind, target_id, events, source) "
            "      select %(disp)s, %(env)s, %(disp)s, 'JOB_VERSION', j.id, array['x'], 'trigger.dev' from j), "
            "e as (insert into {s}.event_record (id, event_id, environment_id, name, source, payload) "
            "      values (%(evt)s, %(evt)s, %(env)s, 'x', 'trigger.dev', '1')) "
            "insert into {s}.job_run (id, number, job_id, version_id, environment_id, endpoint_id, queue_id, event_id, "
            "    dispatcher_id, status) "
            "select %(run)s, (select count(*) + 1 from {s}.job_run r where r.job_id = j.id), j.id, %(version)s, %(env)s, "
            "    %(endpoint)s, %(queue)s, %(evt)s, %(disp)s, %(status)s from j"
        )
        values = names | {"env": p.environment, "project": p.project, "endpoint": endpoint, "job": job_id, "slug": job}
        p.conn.execute(sql.SQL(text).format(s=sql.Identifier("platform")), values | {"status": status})
        return names["run"]


def add_stranger(platform: Platform) -> str:
    """Another organization with an environment of the same slug; its key."""
    key = secrets.new_api_key("dev")
    platform.sql(
        "with o as (insert into {s}.organization (id, title, slug) values ('org_2', 'Other', 'other') returning id), "
        "p as (insert into {s}.project (id, organization_id, name, slug) select 'proj_2', id, 'Shop', 'shop' from o "
        "      returning id, organization_id) "
        "insert into {s}.environment (id, organization_id, project_id, slug, type, api_key_hash, api_key_sealed) "
        "select 'env_2', organization_id, id, 'dev', 'DEVELOPMENT', %s, %s from p",
        secrets.api_key_hash(key), secrets.seal(key),
    )  # fmt: skip
    return key


@pytest_asyncio.fixture
async def api(platform: Platform) -> AsyncIterator[ApiServer]:
    """A listening ApiServer with small limits."""
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    server = make_server(Api(port=0, drain_timeout_s=1), port.set_result)
    serving = asyncio.ensure_future(server.serve())
    await asyncio.wait([port, serving], return_when=asyncio.FIRST_COMPLETED)
    async with aiohttp.ClientSession() as http:
        yield ApiServer(f"http://127.0.0.1:{await port}", platform, add_stranger(platform), http)
    server.should_exit = True
    await serving
