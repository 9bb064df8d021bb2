"""A whole platform on this machine: workers, its HTTP side and an endpoint, on one database, ended in order.

    with ExitStack() as stack:
        platform = Platform(folder, dsn, stack)
        platform.start()
        key = platform.create_organization("Acme").dev
        platform.register(endpoint.url, "shop", key)

Used by the demo, by bench/pipeline.py and by the tests of the pipeline. What it writes (configuration, logs) is in `folder`.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

import psycopg
from cryptography.fernet import Fernet
from psycopg import sql
from psycopg.rows import namedtuple_row

from demo.processes import PROJECT, DemoError, Master, Service, environment, tail, wait_until

QUEUES: Final = {
    "default": 100, "executions": 10, "run-executions": 8, "event-dispatcher": 8, "task-operations": 5,
    "queue-operations": 3, "internal-queue": 3,
}  # fmt: skip
"""Workers of the platform's queues, as CATALOG and conf/prod.toml have them."""
REGISTERED_WITHIN_S = 20.0


class Keys(NamedTuple):
    """The API keys of an organization's environments."""

    dev: str
    prod: str


class Platform:
    """The processes and what is asked of them."""

    def __init__(
        self, folder: Path, dsn: str, stack: ExitStack, *, schema: str = "wqcore", platform_schema: str = "platform"
    ) -> None:
        self.dsn = dsn
        self.schema = schema
        self.platform_schema = platform_schema
        self.config = folder / "platform.toml"
        self.api_port = _free_port()
        self.url = f"http://127.0.0.1:{self.api_port}"
        self._folder = folder
        self.stack = stack
        folder.mkdir(parents=True, exist_ok=True)
        self._conn: psycopg.Connection[Any] | None = None

    # --- starting ---------------------------------------------------------------------------------------------------

    def configure(self, **tables: dict[str, Any]) -> None:
        """Writes the configuration; `tables` (dots as `__`) override it key by key."""
        content: dict[str, dict[str, Any]] = {
            "database": {"dsn": self.dsn, "schema": self.schema, "migrate": "auto"},
            "process": {"handlers": ["handlers"], "drain_timeout_s": 5.0},
            "app.smtp": {"host": "127.0.0.1", "port": 1, "tls": "none", "sender": "demo <demo@sender.example>"},
            "app.secrets": {"keys": Fernet.generate_key().decode()},
            "app.platform": {"schema": self.platform_schema, "public_url": self.url},
            "app.http": {"allow_private_addresses": True},
            "app.api": {"host": "127.0.0.1", "port": self.api_port},
        }
        content |= {f"queues.{name}": {"workers": workers} for name, workers in QUEUES.items()}
        content["queues.default"]["processes"] = "cores"
        for name, table in tables.items():
            content.setdefault(name.replace("__", "."), {}).update(table)
        # a JSON string, number, boolean or list of them is also TOML
        text = "".join(
            f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
            for name, table in content.items()
        )
        self.config.write_text(text, "utf-8")

    def start(self) -> None:
        """Starts workers and HTTP side, and waits until both work. Raises DemoError."""
        self.start_workers()
        self.start_api()

    def start_workers(self) -> None:
        """Starts a master with all queues."""
        if not self.config.exists():
            self.configure()
        self.master = Master(self.config, self._folder / "workers.log")
        self.stack.callback(self.master.stop)
        self.master.wait_ready(len(QUEUES))

    def start_api(self) -> None:
        """Starts the HTTP side."""
        self.api = Service(
            "HTTP side", [sys.executable, "-m", "handlers.api", "--config", str(self.config)], self._folder / "api.log"
        )
        self.stack.callback(self.api.stop)
        self.api.wait_ready()

    def start_node_endpoint(self, folder: Path, key: str, **more: str) -> Service:
        """Starts the Node project `folder`, whose packages are installed, as the endpoint `shop`."""
        node = shutil.which("node")
        if node is None:
            raise DemoError("there is no node")
        endpoint = Service(
            "Node endpoint",
            [node, "index.mjs"],
            self._folder / "endpoint.log",
            variables={
                "TRIGGER_API_URL": self.url, "TRIGGER_API_KEY": key, "ENDPOINT_ID": "shop",
                "JOURNAL": str(self._folder / "endpoint.jsonl"),
            } | more,
            cwd=folder,
        )  # fmt: skip
        self.stack.callback(endpoint.stop)
        endpoint.wait_ready()
        return endpoint

    # --- asking -----------------------------------------------------------------------------------------------------

    def create_organization(self, title: str) -> Keys:
        """Creates an organization as an operator does, with the command line; its keys."""
        made = self.cli("org", "create", title)
        keys = {found["slug"]: found["api_key"] for found in made["environments"]}
        return Keys(keys["dev"], keys["prod"])

    def cli(self, *words: str) -> Any:
        """Runs `python -m handlers.cli … --json`; what it prints. Raises DemoError."""
        return json.loads(self._command("handlers.cli", "--config", str(self.config), *words, "--json"))

    def show(self, *words: str) -> str:
        """Runs `python -m handlers.cli …`; what a person sees. Raises DemoError."""
        return self._command("handlers.cli", "--config", str(self.config), *words)

    def wq(self, *words: str) -> str:
        """Runs `python -m wqcore …`; what it prints. Raises DemoError."""
        return self._command("wqcore", "--config", str(self.config), *words)

    def _command(self, module: str, *words: str) -> str:
        command = [sys.executable, "-m", module, *words]
        run = subprocess.run(command, cwd=PROJECT, env=environment(), capture_output=True, text=True, timeout=60)
        if run.returncode != 0:
            raise DemoError(f"`{' '.join(command[1:])}` ended with {run.returncode}: {run.stderr.strip()}")
        return run.stdout

    def register(self, url: str, slug: str, key: str) -> int:
        """Registers an endpoint over HTTP and waits until its jobs are; how many there are. Raises DemoError."""
        self.post("/api/v1/endpoints", {"url": url, "id": slug}, key)
        indexed = (
            "select stats from {p}.endpoint_index i join {p}.endpoint e on e.id = i.endpoint_id where e.slug = %s "
            "and not exists (select from {wq}.job where kind like 'register%%' or kind in ('indexEndpoint', 'activateSource'))"
        )
        if not wait_until(lambda: bool(self.rows(indexed, slug)), REGISTERED_WITHIN_S):
            raise DemoError(
                f"the endpoint {slug} was not indexed; the workers' log:\n{tail(self._folder / 'workers.log')}"
            )
        return int(self.rows(indexed, slug)[-1].stats["jobs"])

    def post(self, path: str, body: Any, key: str) -> Any:
        """The JSON answer to a POST. Raises DemoError for anything but 200."""
        request = urllib.request.Request(
            self.url + path,
            json.dumps(body).encode(),
            {"authorization": f"Bearer {key}", "content-type": "application/json"},
            method="POST",
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise DemoError(
                f"POST {path} answered {error.code}: {error.read(500).decode('utf-8', 'replace')}"
            ) from None

    def rows(self, query: str, *values: Any) -> list[Any]:
        """Rows of the database; `{p}` stands for the platform's schema and `{wq}` for wqcore's."""
        if self._conn is None:
            self._conn = psycopg.connect(self.dsn, autocommit=True, row_factory=namedtuple_row)
            self.stack.callback(self._conn.close)
        names = {"p": sql.Identifier(self.platform_schema), "wq": sql.Identifier(self.schema)}
        return self._conn.execute(sql.SQL(query).format(**names), values or None).fetchall()

    def is_quiet(self) -> bool:
        """Whether no job is ready, due or running: nothing will happen before the next tick or time-out."""
        quiet = "select not exists (select from {wq}.job where coalesce(run_at, now()) <= now() + interval '5 s') as is_quiet"
        return bool(self.rows(quiet)[0].is_quiet)

    def ended_runs(self) -> int:
        """How many runs have ended of those that events from outside have started: not the clock's, not internal ones."""
        ended = (
            "select count(*) from {p}.job_run r join {p}.event_record e on e.id = r.event_id "
            "where r.completed_at is not null and e.name not like 'dev.trigger.%'"
        )
        return int(self.rows(ended)[0].count)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
