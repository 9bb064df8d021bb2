"""The peers' libraries, installed apart from ours: one Python environment and one folder of Node modules for all of them.

They are made once in `.wqcore/bench/peers` from the pinned lists beside the programs, and again when a list has changed. What
cannot be installed or started is told with its reason; nothing is skipped in silence.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from pathlib import Path

from .cluster import FOLDER
from .errors import BenchError
from .system import System

PROGRAMS = Path(__file__).parent / "peers"
OWN = "wqcore"
NOT_QUEUES = ("__init__", "probe", "program")
INSTALL_LIMIT_S = 600.0


def systems(only: Sequence[str], say: Callable[[str], None]) -> tuple[dict[str, System], dict[str, str]]:
    """The queues that are here, wqcore first (with and without history), and why others are not.

    Args:
        only: names of queues to measure; none = all.
        say: is told what is being installed.

    Raises BenchError for a name in `only` that no program has.
    """
    programs = {path.stem: path for path in sorted(PROGRAMS.glob("*.*")) if path.suffix in (".py", ".mjs")}
    names = [name for name in programs if name not in (OWN, *NOT_QUEUES)]
    wanted = only or [OWN, f"{OWN}_history", *names]
    unknown = set(wanted) - {OWN, f"{OWN}_history", *names}
    if unknown:
        raise BenchError(f"no such queue: {', '.join(sorted(unknown))}; there are {', '.join([OWN, *names])}")
    found: dict[str, System] = {}
    missing: dict[str, str] = {}
    own = [sys.executable, str(programs[OWN])]
    for name, env in ((OWN, {}), (f"{OWN}_history", {"BENCH_KEEP": "1"})):
        if name in wanted:
            found[name] = System(name, own, env)
    for name in names:
        if name not in wanted:
            continue
        try:
            command = _python(say) if programs[name].suffix == ".py" else _node(say)
            program = programs[name] if programs[name].suffix == ".py" else FOLDER / "peers/node" / programs[name].name
            found[name] = System(name, [*command, str(program)])
        except (BenchError, OSError, subprocess.SubprocessError) as error:
            missing[name] = str(error)
    return found, missing


def _python(say: Callable[[str], None]) -> list[str]:
    """The interpreter of the Python peers."""
    folder, wanted = FOLDER / "peers/python", PROGRAMS / "requirements.txt"
    interpreter = (folder / "bin/python").absolute()
    if not _is_current(folder, wanted):
        say("installing the Python peers")
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        _install([str(interpreter), "-m", "pip", "install", "--quiet", "--requirement", str(wanted)])
        _done(folder, wanted)
    return [str(interpreter)]


def _node(say: Callable[[str], None]) -> list[str]:
    """The Node that npm brings: the peers need a newer one than machines have."""
    if shutil.which("npm") is None:
        raise BenchError("npm is not on PATH: install Node.js 20 or newer to measure the queues written for it")
    folder, wanted = FOLDER / "peers/node", PROGRAMS / "package-lock.json"
    folder.mkdir(parents=True, exist_ok=True)
    for program in (*PROGRAMS.glob("*.mjs"), PROGRAMS / "package.json", wanted):
        shutil.copy(program, folder)
    if not _is_current(folder, wanted):
        say("installing the Node peers")
        _install(["npm", "ci", "--no-audit", "--no-fund", "--loglevel=error"], folder)
        _done(folder, wanted)
    return [str((folder / "node_modules/.bin/node").absolute())]


def _install(command: list[str], folder: Path | None = None) -> None:
    # constraints of ours, which tox hands on, are not those of the peers' environment
    env = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
    done = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=INSTALL_LIMIT_S, check=False
    )
    if done.returncode:
        raise BenchError(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()[-800:]}")


def _is_current(folder: Path, wanted: Path) -> bool:
    mark = folder / ".installed"
    return mark.exists() and mark.read_bytes() == wanted.read_bytes()


def _done(folder: Path, wanted: Path) -> None:
    shutil.copy(wanted, folder / ".installed")
