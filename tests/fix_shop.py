"""Gives `shop`: on `platform`, an endpoint with jobs, their queue and dispatchers, and runs and tasks as a test wants them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest_asyncio
from psycopg.types.json import Jsonb

from handlers import ids
from handlers.ingest import Event, ingest
from tests.fix_endpoint import EndpointServer
from tests.fix_job import make_job
from tests.fix_platform import Platform
from wqcore import BatchItem

__all__ = ["Shop", "make_job", "run_batch", "shop"]


@dataclass
class Shop:
    """An environment that holds jobs.

    Attributes:
        platform, endpoint: the database, and the scriptable server that the jobs' endpoint is.
        endpoint_id, queue (str): ids of the endpoint and of the queue of all jobs, which has ten places.
        job (str): a job `ship` that the event `order.made` starts, by the dispatcher `dispatcher`.
    """

    platform: Platform
    endpoint: EndpointServer
    endpoint_id: str = ""
    queue: str = ""
    job: str = ""
    version: str = ""
    dispatcher: str = ""

    def add_job(self, slug: str, *, preprocess: bool = False, queue: str | None = None) -> tuple[str, str]:
        """A job with its latest version; the ids of both."""
        job, version = ids.new("job"), ids.new("ver")
        self.platform.sql(
            "insert into {s}.job (id, project_id, slug, title) values (%s, %s, %s, %s)",
            job, self.platform.project, slug, slug,
        )  # fmt: skip
        self.platform.sql(
            "insert into {s}.job_version (id, job_id, environment_id, endpoint_id, queue_id, version, event, trigger, "
            "preprocess_runs) values (%s, %s, %s, %s, %s, '1.0.0', '{{}}', '{{}}', %s)",
            version, job, self.platform.environment, self.endpoint_id, queue or self.queue, preprocess,
        )  # fmt: skip
        self.platform.sql(
            "insert into {s}.job_alias (job_id, environment_id, name, version_id) values (%s, %s, 'latest', %s)",
            job, self.platform.environment, version,
        )  # fmt: skip
        return job, version

    def add_dispatcher(
        self,
        target: str,
        *events: str,
        kind: str = "JOB_VERSION",
        payload: Any = None,
        context: Any = None,
        **more: Any,
    ) -> str:
        """A dispatcher of this target for these events; its id."""
        dispatcher = ids.new("disp")
        self.platform.sql(
            "insert into {s}.event_dispatcher (id, environment_id, key, kind, target_id, events, source, payload_filter, "
            "context_filter, manual, enabled) values (%s, %s, %s, %s, %s, %s, 'trigger.dev', %s, %s, %s, %s)",
            dispatcher, self.platform.environment, dispatcher, kind, target, list(events),
            Jsonb(payload) if payload is not None else None, Jsonb(context) if context is not None else None,
            more.get("manual", False), more.get("enabled", True),
        )  # fmt: skip
        return dispatcher

    def add_queue(self, name: str, max_jobs: int) -> str:
        """A queue with so many places; its id."""
        queue = ids.new("queue")
        self.platform.sql(
            "insert into {s}.job_queue (id, environment_id, name, max_jobs) values (%s, %s, %s, %s)",
            queue, self.platform.environment, name, max_jobs,
        )  # fmt: skip
        return queue

    async def add_event(
        self, name: str = "order.made", payload: Any = None, *, deliver: bool = False, **more: Any
    ) -> str:
        """A record of a new event; its id."""
        event = Event(id=more.pop("id", ids.new("e")), name=name, payload=payload, **more)
        [record] = await ingest(self.platform.store, self.platform.environment, [event], deliver=deliver)
        return str(record.id)

    async def add_run(self, *, job: str = "", version: str = "", payload: Any = None, **more: Any) -> str:
        """A run that is PENDING, with an event of its own; its id."""
        run, event = ids.new("run"), await self.add_event(payload=payload, **more)
        self.platform.sql(
            "insert into {s}.job_run (id, number, job_id, version_id, environment_id, endpoint_id, queue_id, event_id, "
            "account_id) select %s, (select count(*) from {s}.job_run), v.job_id, v.id, v.environment_id, v.endpoint_id, "
            "v.queue_id, %s, %s from {s}.job_version v where v.id = %s",
            run, event, more.get("account_id"), version or self.version,
        )  # fmt: skip
        return run

    async def started_run(self, **more: Any) -> tuple[str, str, int]:
        """A run that has started: its id, that of its execution, and the number of that one's job."""
        run = await self.add_run(**more)
        await self.platform.store.row("start_runs", runs=[run], executions=[ids.new("exe")])
        [execution] = self.executions(run)
        return run, execution.id, execution.wq_job_id

    def add_task(self, run: str, status: str = "RUNNING", **columns: Any) -> str:
        """A task of a run with its first attempt; its id."""
        task = ids.new("task")
        values = {"id": task, "run_id": run, "idempotency_key": f"key-{task}", "name": "t", "status": status} | columns
        wrapped = [Jsonb(value) if isinstance(value, dict | list) else value for value in values.values()]
        self.platform.sql(
            f"insert into {{s}}.task ({', '.join(values)}) values ({', '.join(['%s'] * len(values))})", *wrapped
        )
        self.platform.sql(
            "insert into {s}.task_attempt (id, task_id, number) values (%s, %s, 1)", ids.new("att"), task
        )  # fmt: skip
        return task

    def run(self, run: str) -> Any:
        """The row of a run."""
        return self._rows("job_run", "id", run)[0]

    def task(self, task: str) -> Any:
        """The row of a task."""
        return self._rows("task", "id", task)[0]

    def executions(self, run: str) -> list[Any]:
        """The executions of a run, oldest first."""
        return self._rows("job_run_execution", "run_id", run)

    def attempts(self, task: str) -> list[tuple[int, str, str | None]]:
        """Number, status and error of each attempt of a task."""
        return self.platform.sql(
            "select number, status, error from {s}.task_attempt where task_id = %s order by number", task
        )

    def places_taken(self, queue: str | None = None) -> int:
        """How many places of the queue are taken."""
        return int(self.platform.one("select job_count from {s}.job_queue where id = %s", queue or self.queue))

    def body(self, n: int = -1) -> Any:
        """What the endpoint was sent."""
        return msgspec.json.decode(self.endpoint.requests[n].body)

    def _rows(self, table: str, column: str, value: str) -> list[Any]:
        found = self.platform.sql(
            f"select to_jsonb(t) from {{s}}.{table} t where {column} = %s order by created_at, id", value
        )
        return [SimpleNamespace(**row) for (row,) in found]


@pytest_asyncio.fixture
async def shop(platform: Platform, endpoint: EndpointServer) -> AsyncIterator[Shop]:
    """A Shop whose endpoint answers SUCCESS without output."""
    found = Shop(platform, endpoint)
    endpoint.will_answer({"status": "SUCCESS"})
    found.endpoint_id = platform.add_endpoint(endpoint.url)
    found.queue = found.add_queue("default", 10)
    found.job, found.version = found.add_job("ship")
    found.dispatcher = found.add_dispatcher(found.job, "order.made")
    yield found


async def run_batch(handler: Callable[..., Awaitable[list[Exception | None]]], args: msgspec.Struct) -> None:
    """Runs a batch handler with one job, and raises what it says of that job."""
    [result] = await handler([BatchItem(args, make_job())])
    if result is not None:
        raise result
