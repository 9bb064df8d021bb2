"""The command line does what a dashboard would: one sentence for people, JSON for programs, an exit code for scripts."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.fix_api import ApiServer, api
from tests.fix_config import write_config
from tests.fix_endpoint import EndpointServer, endpoint
from tests.fix_pg import empty_dsn, pg
from tests.fix_platform import Platform, platform

__all__ = ["api", "empty_dsn", "endpoint", "pg", "platform"]

Said = subprocess.CompletedProcess[str]


@pytest.fixture
def cli(platform: Platform, tmp_path: Path) -> Callable[..., Said]:
    """Runs `python -m handlers.cli` on the platform's database; with `--json` its stdout is JSON."""
    config = write_config(platform, tmp_path)

    def run(*words: str, **environ: str) -> Said:
        command = [sys.executable, "-m", "handlers.cli", "--config", str(config), *words]
        env = {**os.environ, "COLUMNS": "200", **environ}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)

    return run


def parsed(said: Said) -> Any:
    assert said.returncode == 0, said.stderr
    return msgspec.json.decode(said.stdout)


def test_an_organization_is_made_with_keys_that_work(cli: Callable[..., Said], platform: Platform) -> None:
    made = parsed(cli("org", "create", "Ünïted [red]Widgets", "--email", "a@example.com", "--json"))
    assert made["slug"].startswith("united-red-widgets-")
    keys = {found["slug"]: found["api_key"] for found in made["environments"]}
    assert set(keys) == {"dev", "prod"}
    assert platform.jobs("organizationCreated") == [{"id": made["id"]}]
    assert parsed(cli("runs", "list", "--key", keys["dev"], "--json")) == []
    again = cli("org", "create", "Ünïted [red]Widgets")
    assert again.returncode == 0
    assert "Ünïted [red]Widgets" in again.stdout
    assert "tr_prod_" in again.stdout


async def test_an_endpoint_is_registered_and_an_event_sent_once(
    cli: Callable[..., Said], platform: Platform, endpoint: EndpointServer
) -> None:
    endpoint.will_answer({"ok": True})
    added = parsed(
        await asyncio.to_thread(cli, "endpoint", "add", "--key", platform.api_key, endpoint.url, "shop", "--json")
    )
    assert platform.jobs("indexEndpoint")[0]["id"] == added["id"]
    send = ("event", "send", "--key", platform.api_key, "order.made", '{"n": 1}', "--id", "a")
    assert parsed(await asyncio.to_thread(cli, *send, "--json"))["isNew"] is True
    assert "had been sent before" in (await asyncio.to_thread(cli, *send)).stdout
    assert platform.sql("select event_id, payload from {s}.event_record") == [("a", {"n": 1})]


async def test_runs_are_listed_and_one_is_shown_with_its_tasks_and_executions(
    api: ApiServer, cli: Callable[..., Said]
) -> None:
    run, failed = api.add_run(), api.add_run(status="FAILURE")
    made = await api.call(
        "POST", f"/api/v1/runs/{run}/tasks", {"idempotencyKey": "a", "name": "Charge [bold]", "displayKey": "a"}
    )
    await api.call(
        "POST", f"/api/v1/runs/{run}/tasks", {"idempotencyKey": "b", "name": "Inner", "parentId": made.body["id"]}
    )
    api.platform.sql(
        "insert into {s}.job_run_execution (id, run_id, wq_job_id, reason, error) "
        "values ('x', %s, 1, 'EXECUTE_JOB', 'too slow')",
        run,
    )
    key = {"TRIGGER_API_KEY": api.platform.api_key}
    listed = parsed(cli("runs", "list", "--json", **key))
    assert [row["id"] for row in listed] == [failed, run]
    assert [row["id"] for row in parsed(cli("runs", "list", "--status", "FAILURE", "--json", **key))] == [failed]
    assert len(parsed(cli("runs", "list", "--limit", "1", "--json", **key))) == 1
    assert run in cli("runs", "list", **key).stdout
    shown = cli("runs", "show", run, FORCE_COLOR="", NO_COLOR="1").stdout
    for text in (run, "Charge [bold] [a]", "│       └── RUNNING Inner", "PENDING EXECUTE_JOB too slow"):
        assert text in shown
    assert "\x1b" not in shown
    [task] = parsed(cli("runs", "show", run, "--json"))["tasks"]
    assert [inner["name"] for inner in task["subtasks"]] == ["Inner"]


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("runs", "show", "run_none"), 1, "there is no run run_none"),
        (("runs", "list", "--key", "tr_dev_none"), 1, "no environment has this key"),
        (("runs", "list", "--key", "x", "--status", "LATE"), 2, "a run is one of"),
        (("runs", "list"), 2, "--key"),
        (("event", "send", "--key", "x", "order.made", "{"), 2, "not JSON"),
        (("endpoint", "add", "--key", "{key}", "http://127.0.0.1:1/", "shop"), 1, "PING"),
        (("endpoint", "add", "--key", "{key}", "ftp://127.0.0.1/", "shop"), 1, "no http or https URL"),
        (("org", "create", " "), 2, "title"),
        (("event", "send", "--key", "{key}", "x", '"\\u0000"'), 1, "NUL"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_an_exit_code(
    cli: Callable[..., Said], platform: Platform, words: tuple[str, ...], code: int, text: str
) -> None:
    said = cli(*(word.replace("{key}", platform.api_key) for word in words))
    assert (said.returncode, said.stdout) == (code, "")
    assert text in said.stderr
    assert "Traceback" not in said.stderr


def test_a_wrong_configuration_is_2_and_a_database_that_is_away_3(cli: Callable[..., Said], tmp_path: Path) -> None:
    assert cli("runs", "show", "x", WQCORE_APP__SECRETS__KEYS="short").returncode == 2
    away = cli("runs", "show", "x", WQCORE_DATABASE__DSN="host=127.0.0.1 port=1")
    assert away.returncode == 3, away.stderr
    assert away.stderr.count("\n") == 1
