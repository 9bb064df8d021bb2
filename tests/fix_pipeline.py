"""Gives `running`, a whole platform with an endpoint that runs the published SDK, and an upstream service that it uses.

One for all tests of a module: they use different jobs. Everything is real: a master, its workers, the HTTP side, Node.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from demo.stack import Platform
from tests.fix_master import until
from tests.fix_sdk import Sdk, SdkEndpoint
from wqcore.db import embedded

RUN_LIMIT_S = 40.0


@dataclass
class Upstream:
    """A service on loopback: it takes hooks, and answers `/fetch/<name>` with the statuses that a test gave it.

    Attributes:
        hooks: what was posted to `/hooks`, in order.
        statuses: path → what it answers next, in turn; the last one stays.
        requests: path → how often it was asked.
    """

    url: str = ""
    hooks: list[dict[str, Any]] = field(default_factory=list)
    statuses: dict[str, list[int]] = field(default_factory=dict)
    requests: dict[str, int] = field(default_factory=dict)

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/hooks":
            self.hooks.append(json.loads(body))
            return 200, {"id": f"hook-{len(self.hooks)}"}
        self.requests[path] = self.requests.get(path, 0) + 1
        statuses = self.statuses[path]
        return statuses.pop(0) if len(statuses) > 1 else statuses[0], {"asked": self.requests[path]}

    def deliver(self, hook: dict[str, Any], event: dict[str, Any], *, secret: str | None = None) -> None:
        """Sends an event to the hook's URL, signed with its secret or with another."""
        body = json.dumps(event).encode()
        signature = hmac.new((secret or hook["secret"]).encode(), body, hashlib.sha256).hexdigest()
        headers = {
            "content-type": "application/json",
            "x-signature": f"sha256={signature}",
            "x-delivery": str(uuid.uuid4()),
        }
        with urllib.request.urlopen(urllib.request.Request(hook["url"], body, headers), timeout=10) as answer:
            assert answer.status == 200


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """A listening Upstream."""
    found = Upstream()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status, answer = found.answer(self.path, self.rfile.read(int(self.headers.get("content-length", 0))))
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST  # noqa: N815 (the name that http.server looks for)

        def log_message(self, *words: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


@dataclass
class Running:
    """The platform, its endpoint, and what is asked of both."""

    platform: Platform
    endpoint: SdkEndpoint
    upstream: Upstream
    key: str

    def send(self, name: str, payload: Any = None, **event: Any) -> str:
        """Sends an event over HTTP; its id."""
        sent = self.platform.post(
            "/api/v1/events", {"event": {"name": name, "payload": payload, "id": str(uuid.uuid4())} | event}, self.key
        )
        return str(sent["id"])

    def run_of(self, event_id: str) -> Any:
        """The row of the run that the event has made, when it has ended; fails when it does not end."""
        [run] = until(lambda: self.ended_runs([event_id]), f"the run of event {event_id} ends", RUN_LIMIT_S)
        return run

    def ended_runs(self, event_ids: list[str]) -> list[Any]:
        """The rows of the runs of these events that have ended."""
        return self.platform.rows(
            "select r.* from {p}.job_run r join {p}.event_record e on e.id = r.event_id "
            "where e.event_id = any(%s) and r.completed_at is not null",
            event_ids,
        )

    def tasks(self, run_id: str) -> list[Any]:
        """The tasks of a run, in order."""
        return self.platform.rows("select * from {p}.task where run_id = %s order by seq", run_id)

    def bring_forward(self, condition: str, *values: Any) -> None:
        """Makes the waiting ticks of schedules due, as if their time had come."""
        self.platform.rows(
            "with due as (update {wq}.job j set run_at = now() from {p}.schedule_source s where s.active and "
            f"j.job_key = 'scheduled:' || s.id and {condition} returning 1) select count(*) from due",
            *values,
        )


@pytest.fixture(scope="module")
def running(
    server: embedded.Embedded, sdk_packages: Path, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """A Running whose endpoint is registered and indexed."""
    folder = tmp_path_factory.mktemp("pipeline")
    name = f"pipeline_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        admin.execute(f"create database {name}")
    dsn = make_conninfo("", **(conninfo_to_dict(server.dsn) | {"dbname": name}))
    with ExitStack() as stack:
        platform = Platform(folder, dsn, stack)
        platform.start()
        key = platform.create_organization("Acme").dev
        sdk = Sdk(folder, sdk_packages)
        stack.callback(sdk.stop)
        endpoint = sdk.start(platform=platform.url, key=key, id_="shop", upstream=upstream.url)
        platform.register(endpoint.url, "shop", key)
        yield Running(platform, endpoint, upstream, key)
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        admin.execute(f"drop database {name} with (force)")
