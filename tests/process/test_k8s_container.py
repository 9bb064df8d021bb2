"""A master lives in a container as deploy/ asks for it: process 1, a user without name or rights, a root that is read-only."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

import wqcore
from tests.fix_master import World, ready, until
from tests.fix_proxy import Proxy
from wqcore.k8s.pod import USER

ROOT = Path(wqcore.__file__).parents[1]
WRITES = """
import os
import msgspec
import wqcore
from world_handlers import note

@wqcore.kind("write", max_attempts=1)
class Write(msgspec.Struct):
    path: str

@wqcore.handler
async def write(args: Write, job: wqcore.Job) -> None:
    note("start", job)
    with open(args.path, "w") as file:
        file.write("x")
"""


@pytest.fixture
def tmp() -> Iterator[Path]:
    """The only folder that the container may write to."""
    folder = Path(tempfile.mkdtemp(prefix="wqk8s", dir="/tmp"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def container(needed: list[Path], tmp: Path, command: list[str]) -> list[str]:
    """`command` as process 1 of new namespaces, with a read-only root and without rights. Raises nothing; may not work here.

    A checkout or an interpreter below a folder that is closed to others (/root) is shown at its path by a mount of its own.
    """
    script = ["set -e"]
    closed: set[Path] = set()
    for number, path in enumerate(needed):
        above = [parent for parent in reversed(path.parents) if not parent.stat().st_mode & 0o001]
        if above:
            stage = tmp / f"stage{number}"
            stage.mkdir()
            script.append(f"mount --rbind {shlex.quote(str(path))} {stage}")
            if above[0] not in closed:
                closed.add(above[0])
    script += [f"mount -t tmpfs -o mode=755 closed {shlex.quote(str(folder))}" for folder in sorted(closed)]
    for number, path in enumerate(needed):
        if (tmp / f"stage{number}").exists():
            script.append(f"mkdir -p {shlex.quote(str(path))}; mount --rbind {tmp}/stage{number} {shlex.quote(str(path))}")
    script += [
        f"mount --bind {tmp} {tmp}",
        "for at in $(awk '$2 !~ \"^/(proc|sys|dev)\" {print $2}' /proc/mounts); do"
        f" [ $at = {tmp} ] || mount -o remount,bind,ro $at 2>/dev/null || true; done",
        f"cd {shlex.quote(str(ROOT))}",
        f"exec setpriv --reuid {USER} --regid {USER} --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all "
        + shlex.join(command),
    ]
    namespaces = ["unshare", "--pid", "--mount", "--ipc", "--fork", "--mount-proc", "--kill-child"]
    return [*namespaces, "sh", "-c", "\n".join(script)]


def test_a_master_as_process_1_without_rights_works_writes_nowhere_else_and_drains(
    world: World, tmp: Path, new_proxy: Callable[[str], Proxy]
) -> None:
    needed = [*{ROOT, Path(sys.prefix), Path(sys.base_prefix)}, world.folder]
    world.folder.chmod(0o755)
    world.journal = tmp / "journal"
    probe = container(needed, tmp, [sys.executable, "-c", "import wqcore, uvloop, psycopg"])
    tried = subprocess.run(probe, capture_output=True, text=True, cwd="/")
    if tried.returncode:
        pytest.skip(f"NOT TESTED: a master in a container of its own needs root and namespaces: {tried.stderr.strip()[-200:]}")
    for stage in tmp.glob("stage*"):
        stage.rmdir()

    (world.folder / "write_handlers.py").write_text(WRITES)
    config = world.configure(
        database={"dsn": new_proxy(world.dsn).dsn},  # over TCP, as from a pod
        process={"handlers": ["world_handlers", "write_handlers"], "drain_timeout_s": 20.0},
    )
    config.chmod(0o444)
    outer = subprocess.Popen(
        container(needed, tmp, [sys.executable, "-B", "-m", "wqcore", "--config", str(config)]),
        cwd="/", env=world.environ(), stderr=(world.folder / "log0").open("wb"), stdout=subprocess.DEVNULL,
    )  # fmt: skip
    world.masters.append(outer)
    ready(world)
    (master,) = psutil.Process(outer.pid).children()
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{master.pid}/status").read_text().splitlines())
    assert status["NSpid"].split()[-1] == "1"
    assert (status["Uid"].split(), status["Gid"].split(), status["Groups"].split()) == ([str(USER)] * 4, [str(USER)] * 4, [])
    assert [int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapInh")] == [0, 0, 0, 0]
    assert status["NoNewPrivs"] == "1"

    (worker,) = [child for child in master.children() if "worker" in " ".join(child.cmdline())]
    scores = [int(Path(f"/proc/{process.pid}/oom_score").read_text()) for process in (worker, master)]
    assert scores[0] > scores[1], "the kernel would kill the master, and with it the container, for a worker's memory"

    world.insert("write", 1, {"path": str(tmp / "fine")})
    for path in (ROOT / "wqcore" / "planted.py", world.folder / "planted.py", Path("/tmp/planted"), Path("/planted")):
        world.insert("write", 1, {"path": str(path)}, max_attempts=1)
    until(lambda: world.outcomes() == {"completed": 1, "discarded": 4}, "it may write to its own folder alone")
    errors = world.conn.execute("select errors::text from wqcore.history where outcome = 'discarded'").fetchall()
    assert all("Read-only file system" in text or "Permission denied" in text for (text,) in errors), errors

    worker.kill()
    world.insert("nap", 20, {"s": 0.01})
    until(lambda: world.outcomes().get("completed") == 21, "a dead worker is reaped and replaced")
    until(lambda: len(master.children()) == 2, "process 1 leaves no zombie")
    world.insert("nap", 3, {"s": 1.0})
    until(lambda: len(world.runs()) == 28, "three jobs run")
    os.kill(master.pid, signal.SIGTERM)
    assert outer.wait(30) == 0
    assert world.outcomes() == {"completed": 24, "discarded": 4}
    assert world.scalar("select count(*) from wqcore.shard") == 0
    with suppress(FileNotFoundError):
        assert not list(Path(f"/proc/{master.pid}/task").iterdir())
