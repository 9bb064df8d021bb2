"""What each group's pods need; a configuration that cannot work in Kubernetes is refused here, with all its problems at once.

Memory: a worker process is replaced above its soft limit, the new one before the old one leaves, so a container holds one
worker more than it has places. The limit is that, and what master, keeper and shared modules take, and a quarter on top for what
a worker takes between two samples.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import UNSET, UnsetType

from wqcore.errors import ConfigError
from wqcore.settings import KubernetesGroup, Queue, Settings, load
from wqcore.version import VERSION

MEMORY_BASE_MB = 160
"""Master, keeper and the modules that all share: 73 MB resident were measured with `handlers/`, 60 of them shared."""
MEMORY_RESERVE = 1.25
MEMORY_STEP_MB = 64
DRAIN_MARGIN_S = 20
"""Above the 15 s that come after drain_timeout_s and cancel_grace_s at worst: 10 for resources to close, 5 until the master
kills what is left."""
WATCH_PORT = 9464
NO_DATABASE = "postgresql://the-secret-has-it"
SECRETS = re.compile(r"(^|_)(dsn|password|passphrase|secret|token|keys?|credentials?)$")


@dataclass(frozen=True)
class Seats:
    """A queue as a scaler sees it: jobs that one master is to have, and more than which no master is started for."""

    queue: str
    jobs_per_master: float
    jobs_max: int


@dataclass(frozen=True)
class Group:
    """One Deployment of masters."""

    name: str
    queues: list[str]
    options: KubernetesGroup
    processes: int
    cpu_limit: float | None
    memory_soft_mb: int
    memory_mb: int
    seats: list[Seats]


@dataclass(frozen=True)
class Plan:
    """All that the objects are made of. `config` is the text of the file, `source` how the files' heads call it, `watch_told`
    what masters get in their environment so that the probes reach them."""

    settings: Settings
    config: str
    source: str
    image: str
    namespace: str
    watch_port: int
    watch_told: dict[str, str]
    groups: list[Group]

    @property
    def name(self) -> str:
        """What the names of all objects begin with."""
        return self.settings.kubernetes.name

    @property
    def drain_s(self) -> int:
        """Seconds between TERM and KILL that a master may need."""
        process = self.settings.process
        return math.ceil(process.drain_timeout_s + process.cancel_grace_s) + DRAIN_MARGIN_S

    @property
    def boot_s(self) -> int:
        """Seconds that a master may take until its first worker is up: each module's import, then the start hooks."""
        process = self.settings.process
        return math.ceil(process.boot_timeout_s * (len(process.handlers) + 2))


def read(path: Path, source: str, *, image: str | None = None, namespace: str | None = None) -> Plan:
    """The plan for a configuration file. Raises ConfigError.

    The environment is not read: what stands there belongs to one place, and may be secret.
    """
    settings = load(path, environ={}, overrides={"database.dsn": None if _has_database(path) else NO_DATABASE})
    problems = [*_secrets(settings), *_misfits(settings)]
    if problems:
        raise ConfigError(problems)
    kubernetes = settings.kubernetes
    port, told = _watch(settings)
    return Plan(
        settings=settings,
        config=path.read_text("utf-8"),
        source=source,
        image=image or (f"{kubernetes.name}:{VERSION}" if isinstance(kubernetes.image, UnsetType) else kubernetes.image),
        namespace=namespace or kubernetes.namespace,
        watch_port=port,
        watch_told=told,
        groups=[group(settings, name) for name in sorted({settings.group_of(queue) for queue in settings.queues})],
    )


def group(settings: Settings, name: str) -> Group:
    """How large the pods of a group are."""
    queues = {queue: found for queue, found in settings.queues.items() if settings.group_of(queue) == name}
    options = settings.kubernetes.groups.get(name, KubernetesGroup())
    cores = math.ceil(options.cpu)
    processes = sum(queue.process_count(cores) for queue in queues.values())
    soft_mb = settings.process.memory_soft_mb
    soft_mb = options.memory_soft_mb if isinstance(soft_mb, UnsetType) else soft_mb
    need_mb = MEMORY_RESERVE * (MEMORY_BASE_MB + (processes + 1) * soft_mb)
    return Group(
        name=name,
        queues=list(queues),
        options=options,
        processes=processes,
        # without "cores" nothing depends on a limit, and one would only stop the master's tick when workers are busy
        cpu_limit=options.cpu if any(queue.processes == "cores" for queue in queues.values()) else None,
        memory_soft_mb=soft_mb,
        memory_mb=math.ceil(need_mb / MEMORY_STEP_MB) * MEMORY_STEP_MB,
        seats=[_seats(name, queue, options) for name, queue in queues.items()],
    )


def _seats(name: str, queue: Queue, options: KubernetesGroup) -> Seats:
    masters = options.replicas_max
    if isinstance(queue.max_workers_total, int):
        masters = min(masters, math.ceil(queue.max_workers_total / queue.workers))
    jobs = queue.workers * options.jobs_per_worker
    return Seats(name, jobs, math.ceil(jobs * masters))


def _misfits(settings: Settings) -> Iterator[str]:
    kubernetes, groups = settings.kubernetes, {settings.group_of(queue) for queue in settings.queues}
    if not groups:
        yield "there is no [queues.<name>]: nothing would run"
    if settings.database.embedded:
        yield "database.embedded = true: pods have no database of their own; leave it out, and give WQCORE_DATABASE__DSN"
    if settings.database.migrate == "auto":
        yield 'database.migrate = "auto": every pod would migrate at its start; the Job does it once, before them'
    if settings.process.group is not UNSET:
        yield "process.group is set: each Deployment gives its own by --group; leave it out"
    for name in sorted(groups & set(kubernetes.programs)):
        yield f"{name!r} is a group and a program: their Deployments would have one name; rename one"
    for name in sorted({"migrate", "watch"} & (groups | set(kubernetes.programs))):
        yield f"{name!r} is what the object of another purpose is called: rename the group or program"
    for name in sorted(set(kubernetes.groups) - groups):
        yield f"kubernetes.groups.{name}: there is no such group; the groups are {', '.join(sorted(groups))}"
    for name in sorted(groups):
        options = kubernetes.groups.get(name, KubernetesGroup())
        if options.replicas > options.replicas_max:
            yield f"kubernetes.groups.{name}.replicas = {options.replicas} is more than its replicas_max = {options.replicas_max}"
        for queue, found in settings.queues.items():
            if settings.group_of(queue) != name:
                continue
            processes = found.process_count(math.ceil(options.cpu))
            if processes * options.replicas_max > found.slots:
                yield (
                    f"kubernetes.groups.{name}.replicas_max = {options.replicas_max} masters with {processes} processes each "
                    f"share the {found.slots} slots of queue {queue!r}: those beyond would have no work; "
                    f"write at most {found.slots // processes}"
                )


def _secrets(settings: Settings) -> Iterator[str]:
    """What must not stand in a ConfigMap, which everybody who may read the namespace can read."""
    if settings.database.dsn not in (UNSET, NO_DATABASE):
        yield "database.dsn stands in the file, which becomes a ConfigMap: put it into the Secret as WQCORE_DATABASE__DSN"
    for keys in _paths(settings.app):
        if SECRETS.search(keys[-1]):
            variable = "WQCORE_APP__" + "__".join(key.upper() for key in keys)
            yield f"app.{'.'.join(keys)} stands in the file, which becomes a ConfigMap: put it into the Secret as {variable}"


def _paths(table: dict[str, Any]) -> Iterator[list[str]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from ([key, *keys] for keys in _paths(value))
        else:
            yield [key]


def _has_database(path: Path) -> bool:
    """Whether the file says itself where the database is; then it is refused or reported, and nothing is put over it."""
    try:
        load(path, environ={})
    except ConfigError as error:
        return not any(problem.startswith("database.dsn is not set") for problem in error.problems)
    return True


def _watch(settings: Settings) -> tuple[int, dict[str, str]]:
    """The port of probes and metrics, and what masters must be told for it: a port where the file sets none, and an address
    that the probes reach where it is loopback."""
    watch = settings.watch
    port, told = watch.port, {}
    if not isinstance(port, int):
        port = WATCH_PORT
        told["WQCORE_WATCH__PORT"] = str(port)
    if watch.host in ("127.0.0.1", "::1", "localhost"):
        told["WQCORE_WATCH__HOST"] = "0.0.0.0"  # noqa: S104 (all addresses of the pod; its network policy says who may)
    return port, told
