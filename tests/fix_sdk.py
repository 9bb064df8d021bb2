"""Gives `sdk`, which starts endpoints that run the published @trigger.dev/sdk: the Node project in tests/sdk.

The packages of its lock file are installed once, by npm, into the user's cache; the folder is named by the lock file, so
that a changed one is installed anew. Parallel workers wait for the first at a file lock. An installation that dies leaves
a folder without its final name, which the next one removes.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parent / "sdk"
NODE_MIN = 18
"""The SDK uses Node's own fetch."""
INSTALL_LIMIT_S, START_LIMIT_S, STOP_LIMIT_S = 300, 30, 10


class SdkEndpoint:
    """A running endpoint and what its jobs have done.

    Attributes:
        id: the endpoint's id.
        port: where it listens, on loopback.
        log: the file with its standard error: warnings of the SDK, and what user code threw.
    """

    def __init__(self, process: subprocess.Popen[str], id_: str, port: int, journal: Path, log: Path) -> None:
        self._process = process
        self._journal = journal
        self.id = id_
        self.port = port
        self.log = log

    @property
    def url(self) -> str:
        """Where the platform calls it."""
        return f"http://127.0.0.1:{self.port}/api/trigger"

    def journal(self, **wanted: Any) -> list[dict[str, Any]]:
        """The effects of its jobs in order, those whose fields are as wanted: `journal(job="steps", what="task")`."""
        complete = self._journal.read_text().rpartition("\n")[0]
        lines = [json.loads(line) for line in complete.splitlines()]
        return [line for line in lines if all(line.get(name) == value for name, value in wanted.items())]

    def stop(self) -> None:
        """Ends it as the end of its parent would; what it is doing is cut off."""
        try:
            self._process.communicate(timeout=STOP_LIMIT_S)  # closes its standard input and waits
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Ends it with SIGKILL."""
        self._process.kill()
        self._process.communicate()


class Sdk:
    """Starts endpoints in `folder`, with the packages in `packages`."""

    def __init__(self, folder: Path, packages: Path) -> None:
        # Node looks for packages beside the file that imports them: so the project is copied to where they are linked
        shutil.copytree(PROJECT, folder / "project", ignore=shutil.ignore_patterns("node_modules"))
        (folder / "project/node_modules").symlink_to(packages)
        self._folder = folder
        self._endpoints: list[SdkEndpoint] = []

    def start(
        self, *, platform: str, key: str, id_: str = "shop", upstream: str = "http://127.0.0.1:9", port: int = 0
    ) -> SdkEndpoint:
        """An endpoint that listens. `platform` is the platform's URL, `key` the environment's, `upstream` where the
        external source registers its hooks. Endpoints of one id share a journal, so that one can follow another."""
        journal, log = self._folder / f"{id_}.jsonl", self._folder / f"{id_}.log"
        journal.touch()
        env = os.environ | {
            "TRIGGER_API_URL": platform, "TRIGGER_API_KEY": key, "ENDPOINT_ID": id_,
            "JOURNAL": str(journal), "UPSTREAM_URL": upstream, "PORT": str(port),
        }  # fmt: skip
        with log.open("a") as errors:
            process = subprocess.Popen(
                ["node", "index.mjs"], cwd=self._folder / "project", env=env, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
            )  # fmt: skip
        assert process.stdout is not None
        listens = select.select([process.stdout], [], [], START_LIMIT_S)[0] and process.stdout.readline()
        if not listens:
            process.kill()
            process.communicate()
            pytest.fail(f"the endpoint did not start: {log.read_text()[-2000:]}")
        endpoint = SdkEndpoint(process, id_, json.loads(listens)["port"], journal, log)
        self._endpoints.append(endpoint)
        return endpoint

    def stop(self) -> None:
        """Stops what still runs."""
        for endpoint in self._endpoints:
            endpoint.stop()


@pytest.fixture(scope="session")
def sdk_packages() -> Path:
    """The folder `node_modules` with the SDK; skips where it cannot be had."""
    missing = [name for name in ("node", "npm") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"THE SDK IS NOT TESTED: {' and '.join(missing)} not on PATH; install Node.js {NODE_MIN} or newer")
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.lstrip("v").split(".")[0]) < NODE_MIN:
        pytest.skip(f"THE SDK IS NOT TESTED: Node.js is {version}; install {NODE_MIN} or newer")
    lock = (PROJECT / "package-lock.json").read_bytes() + (PROJECT / "package.json").read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wqcore"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"sdk-{hashlib.sha256(lock).hexdigest()[:16]}"
    with (cache / "sdk.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not folder.exists():
            _install(folder)
    return folder / "node_modules"


@pytest.fixture
def sdk(tmp_path: Path, sdk_packages: Path) -> Iterator[Sdk]:
    """`sdk.start(platform=…, key=…)` starts an endpoint, which ends with the test."""
    sdk = Sdk(tmp_path, sdk_packages)
    yield sdk
    sdk.stop()


def _install(folder: Path) -> None:
    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    for name in ("package.json", "package-lock.json"):
        shutil.copy(PROJECT / name, unfinished)
    command = ["npm", "ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    try:
        done = subprocess.run(
            command, cwd=unfinished, capture_output=True, text=True, timeout=INSTALL_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"THE SDK IS NOT TESTED: npm could not install it within {INSTALL_LIMIT_S} s")
    if done.returncode:
        pytest.skip(f"THE SDK IS NOT TESTED: npm could not install it: {(done.stderr or done.stdout).strip()[-800:]}")
    unfinished.rename(folder)
