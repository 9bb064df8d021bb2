"""A user's endpoint in Python: what the SDK does in Node, for two jobs, by the same protocol. It keeps no state.

    hello   succeeds at once, with its payload
    order   reserves, charges, waits a second, and ships

The platform calls EXECUTE_JOB again and again until a job ends, each time with the tasks that are completed. A job reads
straight down; a task in that list is answered from it, the first that is not goes to the platform, which returns the
task of the same idempotency key if there is one. So a call that is cut off anywhere is simply repeated: a task whose
completion was not stored runs again, no other does.

What user code raises is the answer `status: "ERROR"`; when the platform cannot be reached or refuses, the answer is
HTTP 500, upon which the platform calls again. `{"port": n}` is the first line on standard output. The process ends on
SIGTERM, and when its standard input ends: so it never outlives who started it.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import hashlib
import hmac
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import msgspec
import uvloop
from aiohttp import web

JSON: Final = "application/json"
OUTPUT_IS_A_STRING: Final = {"Trigger-Version": "2023-11-01"}
CALL_TIMEOUT_S: Final = 30.0
WAIT_S: Final = 1.0


class Execution(msgspec.Struct, frozen=True):
    """The body of EXECUTE_JOB, as far as it matters here; `tasks` are those that earlier calls completed."""

    event: dict[str, Any]
    job: dict[str, Any]
    run: dict[str, Any]
    tasks: list[dict[str, Any]] = []


class Resume(Exception):  # noqa: N818
    """The job cannot go on before the task, its argument, is completed."""


class Run:
    """What a job sees of its run."""

    def __init__(self, execution: Execution, platform: aiohttp.ClientSession) -> None:
        self.id: str = execution.run["id"]
        self._completed = {task["idempotencyKey"]: task.get("output") for task in execution.tasks}
        self._platform = platform

    async def task(self, name: str, work: Callable[[], Any], **options: Any) -> Any:
        """The output of the task `name`; `work` makes it unless it was made before. Names are unique in a job."""
        key = hashlib.sha256(f"{self.id}:{name}".encode()).hexdigest()
        if key in self._completed:
            return self._completed[key]
        body = {"idempotencyKey": key, "displayKey": name, "name": name, "noop": False, **options}
        task = await self._post("", body, {"Idempotency-Key": key})
        if task["status"] == "COMPLETED":
            return task.get("output")
        if task["status"] != "RUNNING":
            raise Resume(task)
        output = work()
        body = {"output": msgspec.json.encode(output).decode()}
        await self._post(f"/{task['id']}/complete", body, OUTPUT_IS_A_STRING)
        return output

    async def wait(self, name: str, seconds: float) -> None:
        """Goes on after so many seconds, in another call; no process waits meanwhile."""
        until = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)
        await self.task(name, lambda: None, noop=True, delayUntil=until.isoformat(), params={"seconds": seconds})

    async def _post(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
        url, data = f"/api/v1/runs/{self.id}/tasks{path}", msgspec.json.encode(body)
        async with self._platform.post(url, data=data, headers={"Content-Type": JSON, **headers}) as answer:
            answer.raise_for_status()
            return msgspec.json.decode(await answer.read(), type=dict[str, Any])


async def hello(payload: Any, run: Run) -> Any:
    """Returns its payload."""
    return payload


async def order(payload: Any, run: Run) -> Any:
    """Does the steps of an order; each is made by one call, and its output kept."""
    reserved = await run.task("reserve", lambda: {"reserved": payload.get("items", 1)})
    charged = await run.task("charge", lambda: {"charged": payload.get("amount", 0)})
    await run.wait("until the parcel is collected", WAIT_S)
    return reserved | charged | await run.task("ship", lambda: {"tracking": f"parcel-{run.id}"})


JOBS: Final[dict[str, Callable[[Any, Run], Awaitable[Any]]]] = {"hello": hello, "order": order}


def described(id_: str) -> dict[str, Any]:
    """A job as the index shows it; the event of its name starts it."""
    return {
        "id": id_, "name": id_, "version": "1.0.0", "enabled": True, "preprocessRuns": False,
        "startPosition": "latest", "integrations": {},
        "event": {"name": id_, "title": "Event", "source": "trigger.dev", "icon": "custom-event"},
        "trigger": {"type": "static", "title": id_, "rule": {"event": id_, "source": "trigger.dev", "payload": {}}},
    }  # fmt: skip


@dataclass(frozen=True)
class Endpoint:
    """Answers the platform, which must know `key`; `platform` is for calls the other way."""

    id: str
    key: str
    platform: aiohttp.ClientSession

    async def handle(self, request: web.Request) -> web.Response:
        """One call; `x-trigger-action` says which."""
        if not hmac.compare_digest(request.headers.get("x-trigger-api-key", "").encode(), self.key.encode()):
            return answer({"message": "Unauthorized: wrong or missing x-trigger-api-key"}, 401)
        match request.headers.get("x-trigger-action"):
            case "PING":
                id_ = request.headers.get("x-trigger-endpoint-id")
                wrong = {"ok": False, "error": f"Endpoint ID mismatch error. Expected {self.id}, got {id_}"}
                return answer({"ok": True} if id_ == self.id else wrong)
            case "INDEX_ENDPOINT":
                jobs = [described(id_) for id_ in JOBS]
                return answer({"jobs": jobs, "sources": [], "dynamicTriggers": [], "dynamicSchedules": []})
            case "EXECUTE_JOB":
                return await self._execute(await request.read())
        return answer({"message": "Method not allowed"}, 405)

    async def _execute(self, body: bytes) -> web.Response:
        try:
            execution = msgspec.json.decode(body, type=Execution)
        except msgspec.MsgspecError as error:
            return answer({"message": f"Invalid execution: {error}"}, 400)
        job = JOBS.get(execution.job["id"])
        if job is None:
            return answer({"message": "Job not found"}, 404)
        try:
            output = await job(execution.event.get("payload") or {}, Run(execution, self.platform))
        except Resume as resume:
            return answer({"status": "RESUME_WITH_TASK", "task": resume.args[0]})
        except (aiohttp.ClientError, TimeoutError) as error:
            return answer({"message": f"the platform: {error}"}, 500)
        except Exception as error:  # whatever user code raises is its run's failure, not the endpoint's
            return answer({"status": "ERROR", "error": {"name": type(error).__name__, "message": str(error)}})
        return answer({"status": "SUCCESS", "output": output})


def answer(body: dict[str, Any], status: int = 200) -> web.Response:
    """An answer in JSON."""
    headers = {"Content-Type": JSON, "Trigger-Version": "2023-09-29"}
    return web.Response(body=msgspec.json.encode(body), status=status, headers=headers)


async def serve(options: argparse.Namespace) -> None:
    """Serves until SIGTERM or the end of standard input."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, over.set)
    loop.add_reader(sys.stdin, over.set)
    timeout, headers = aiohttp.ClientTimeout(total=CALL_TIMEOUT_S), {"Authorization": f"Bearer {options.key}"}
    session = aiohttp.ClientSession(options.platform, headers=headers, timeout=timeout)
    app = web.Application()
    app.router.add_post("/api/trigger", Endpoint(options.id, options.key, session).handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", options.port).start()
    sys.stdout.write(f'{{"port": {runner.addresses[0][1]}}}\n')
    sys.stdout.flush()
    await over.wait()
    await runner.cleanup()
    await session.close()


def main() -> None:
    """Parses the command line and serves."""
    parser = argparse.ArgumentParser(description="the demo's endpoint, at /api/trigger")
    parser.add_argument("--id", default="demo", help="the endpoint's id")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--platform", required=True, help="URL of the platform's API")
    parser.add_argument("--key", required=True, help="the environment's key")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
