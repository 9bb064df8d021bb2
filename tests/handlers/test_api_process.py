"""`python -m handlers.api` serves until TERM, and answers what it has begun before it ends."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest_asyncio

from tests.fix_config import write_config
from tests.fix_endpoint import Answer, EndpointServer, endpoint
from tests.fix_pg import empty_dsn, pg
from tests.fix_platform import Platform, platform

__all__ = ["empty_dsn", "endpoint", "pg", "platform"]

Start = Callable[..., Awaitable[tuple[Process, str]]]


@pytest_asyncio.fixture
async def start(platform: Platform, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts the program and waits until it listens; the process and its URL."""
    started: list[Process] = []

    async def run(*words: str) -> tuple[Process, str]:
        command = ["-m", "handlers.api", "--config", str(write_config(platform, tmp_path, api={"port": 0})), *words]
        process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=PIPE, stderr=PIPE)
        started.append(process)
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 30)
        return process, f"http://127.0.0.1:{json.loads(line)['port']}" if line else ""

    yield run
    for process in started:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def said(process: Process) -> str:
    """What it wrote to standard error until its end."""
    _, err = await asyncio.wait_for(process.communicate(), 30)
    return err.decode()


async def test_a_request_that_was_begun_before_term_is_answered_and_the_server_then_ends_with_0(
    start: Start, platform: Platform, endpoint: EndpointServer
) -> None:
    endpoint.will_answer(Answer(body=b'{"ok": true}', delay_s=1.0))
    process, url = await start()
    headers = {"authorization": f"Bearer {platform.api_key}"}
    async with aiohttp.ClientSession(headers=headers) as http:
        async with http.get(f"{url}/healthz") as health:  # leaves an idle connection, which must not hold up the end
            assert health.status == 200
        request = asyncio.ensure_future(http.post(f"{url}/api/v1/endpoints", json={"url": endpoint.url, "id": "shop"}))
        async with asyncio.timeout(20):
            while not endpoint.requests:
                await asyncio.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        answer = await request
        assert answer.status == 200, await answer.text()
    log = await said(process)
    assert process.returncode == 0, log
    assert "POST /api/v1/endpoints 200" in log
    assert json.loads(log.splitlines()[-1])["message"] == "stopped"
    assert platform.api_key not in log
    assert platform.one("select count(*) from {s}.endpoint") == 1
    assert platform.one("select count(*) from pg_stat_activity where application_name = 'wqcore handlers'") <= 1


async def test_a_second_signal_ends_it_at_once(start: Start, platform: Platform, endpoint: EndpointServer) -> None:
    endpoint.will_answer(Answer(delay_s=3600))
    process, url = await start()
    async with aiohttp.ClientSession(headers={"authorization": f"Bearer {platform.api_key}"}) as http:
        body = {"url": endpoint.url, "id": "shop"}
        request = asyncio.ensure_future(http.post(f"{url}/api/v1/endpoints", json=body))
        async with asyncio.timeout(20):
            while not endpoint.requests:
                await asyncio.sleep(0.01)
            process.send_signal(signal.SIGINT)
            while (await asyncio.to_thread(refused, url)) is False:
                pass
            process.send_signal(signal.SIGINT)
        await said(process)
        await asyncio.gather(request, return_exceptions=True)
    assert process.returncode is not None


def refused(url: str) -> bool:
    """Whether nothing listens there any more."""
    try:
        socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))).close()
    except ConnectionRefusedError:
        return True
    return False


async def test_a_port_that_is_taken_ends_it_with_2(start: Start) -> None:
    _, url = await start()
    second, _ = await start("--port", url.rsplit(":", 1)[1])
    log = await said(second)
    assert second.returncode == 2
    assert "cannot listen on 127.0.0.1" in log
    assert "Traceback" not in log
