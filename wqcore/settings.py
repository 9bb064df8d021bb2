"""Every option, its default and its limits; all defaults live here.

Sources, later ones win: the TOML file, then environment variables `WQCORE_<TABLE>__<KEY>` (for secrets, e.g.
`WQCORE_DATABASE__DSN`; the app's own tables as `WQCORE_APP__SMTP__PASSWORD`), then the command line. Unknown keys are
refused; `load` reports all problems at once, each with its key and the fix. A file that others could have written is
refused: the modules that it names are code.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from wqcore import cpus, ticks, trust
from wqcore.errors import ConfigError
from wqcore.job import ATTEMPTS_MAX, PRIORITY_MAX, PRIORITY_MIN, SLOTS_MAX, JobKeyMode, check_name

Seconds = Annotated[float, Meta(gt=0, le=604_800)]


HOME = "default"
"""The name of the database that the table [database] describes."""


class Database(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where PostgreSQL is."""

    dsn: str | UnsetType = UNSET
    schema: str = "wqcore"
    embedded: bool = False
    embedded_path: str = ".wqcore/postgres"
    embedded_version: Literal[16, 18] = 18
    migrate: Literal["auto", "explicit"] = "explicit"
    connect_timeout_s: Annotated[int, Meta(ge=1, le=300)] = 5
    statement_timeout_s: Seconds = 20.0
    tcp_user_timeout_s: Seconds = 15.0
    pooler: Literal["none", "transaction"] = "none"

    @property
    def listens(self) -> bool:
        """Whether a connection is a session of the server: with its own settings, prepared statements and LISTEN."""
        return self.pooler == "none"


class Insert(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Limits of inserting."""

    args_bytes_max: Annotated[int, Meta(ge=64, le=64 * 1024 * 1024)] = 256 * 1024
    notify_interval_s: Annotated[float, Meta(ge=0, le=1)] = 0.005


class Process(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The master and the processes it forks."""

    group: str | UnsetType = UNSET
    handlers: list[str] = []
    preload: bool = True
    drain_timeout_s: Seconds = 30.0
    boot_timeout_s: Seconds = 30.0
    loop_stuck_s: Seconds = 10.0
    cancel_grace_s: Seconds = 10.0
    dead_after_s: Annotated[float, Meta(ge=2, le=3600)] = 7.0
    beat_interval_s: Annotated[float, Meta(ge=0.1, le=60)] = 1.0
    deaths_max: Annotated[int, Meta(ge=1, le=100)] = 3
    memory_soft_mb: Annotated[int, Meta(ge=1, le=10_000_000)] | UnsetType = UNSET
    recycle_after_s: Annotated[float, Meta(ge=1, le=31_622_400)] | UnsetType = UNSET
    recycle_after_jobs: Annotated[int, Meta(ge=1, le=1_000_000_000)] | UnsetType = UNSET
    unknown_kind_grace_s: Annotated[float, Meta(ge=0, le=604_800)] = 3600.0


class Retention(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How long finished jobs stay in `history`, unless their queue says other; 0 writes none."""

    completed_hours: Annotated[int, Meta(ge=0, le=87_600)] = 24
    cancelled_hours: Annotated[int, Meta(ge=0, le=87_600)] = 24
    discarded_hours: Annotated[int, Meta(ge=0, le=87_600)] = 168


class QueueRetention(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one queue keeps longer or shorter than `[retention]` says."""

    completed_hours: Annotated[int, Meta(ge=0, le=87_600)] | UnsetType = UNSET
    cancelled_hours: Annotated[int, Meta(ge=0, le=87_600)] | UnsetType = UNSET
    discarded_hours: Annotated[int, Meta(ge=0, le=87_600)] | UnsetType = UNSET


class Rate(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A token bucket: `jobs` starts per `per_s` seconds, and at most `burst` at once (`jobs`, unless it says other)."""

    jobs: Annotated[float, Meta(gt=0, le=1e9)]
    per_s: Seconds = 1.0
    burst: Annotated[float, Meta(ge=1, le=1e9)] | UnsetType = UNSET

    @property
    def per_second(self) -> float:
        """Tokens per second."""
        return self.jobs / self.per_s

    @property
    def burst_jobs(self) -> float:
        """Tokens that a full bucket holds; at least one."""
        return max(1.0, self.jobs if isinstance(self.burst, UnsetType) else self.burst)


class Limits(Struct, frozen=True, kw_only=True):
    """What a queue may do; these can be changed at run time (the column `limits` of its row)."""

    max_per_key: Annotated[int, Meta(ge=1, le=100_000)] = 1
    rate: Rate | None = None
    rate_per_key: Rate | None = None
    max_workers_total: Annotated[int, Meta(ge=1, le=100_000)] | None = None


Level = Literal["debug", "info", "warning", "error", "DEBUG", "INFO", "WARNING", "ERROR"]


class KindLogging(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the lines of one kind's jobs differ from what `[logging]` says."""

    level: Level | UnsetType = UNSET
    tasks: Literal["all", "failures"] | UnsetType = UNSET
    sample: Annotated[float, Meta(ge=0, le=1)] | UnsetType = UNSET
    keep_lines: Annotated[int, Meta(ge=0, le=10_000)] | UnsetType = UNSET
    keep_bytes_max: Annotated[int, Meta(ge=256, le=1024 * 1024)] | UnsetType = UNSET


class Logging(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is logged, how, and what of it is kept with the jobs."""

    level: Level = "info"
    format: Literal["auto", "json", "text"] = "auto"
    tasks: Literal["all", "failures"] = "failures"
    sample: Annotated[float, Meta(ge=0, le=1)] = 1.0
    errors: Literal["class", "text"] = "class"
    keep_lines: Annotated[int, Meta(ge=0, le=10_000)] = 0
    keep_bytes_max: Annotated[int, Meta(ge=256, le=1024 * 1024)] = 16 * 1024
    kinds: dict[str, KindLogging] = {}

    def of_kind(self, name: str) -> Logging:
        """These settings with those of a kind put over them."""
        own = self.kinds.get(name)
        if own is None:
            return self
        given = {key: value for key, value in msgspec.structs.asdict(own).items() if value is not UNSET}
        return msgspec.structs.replace(self, **given)


class Traces(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """OpenTelemetry; the exporter is the program's own."""

    enabled: bool = False


class Watch(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The port of a master that programs watch it by."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=1, le=65_535)] | UnsetType = UNSET
    survey_interval_s: Annotated[float, Meta(ge=0.2, le=3600)] = 15.0


class Queue(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One queue of a master."""

    workers: Annotated[int, Meta(ge=1, le=10_000)] = 10
    processes: Annotated[int, Meta(ge=1, le=256)] | Literal["cores"] = 1
    group: str | UnsetType = UNSET
    database: str = HOME
    slots: Annotated[int, Meta(ge=1, le=SLOTS_MAX)] = 16
    poll_interval_s: Annotated[float, Meta(ge=0.05, le=3600)] = 1.0
    fetch_cooldown_s: Annotated[float, Meta(ge=0, le=60)] = 0.1
    prefetch_s: Annotated[float, Meta(ge=0, le=10)] = 0.05
    batch_max: Annotated[int, Meta(ge=1, le=10_000)] = 2000
    max_per_key: Annotated[int, Meta(ge=1, le=100_000)] = 1
    rate: Rate | UnsetType = UNSET
    rate_per_key: Rate | UnsetType = UNSET
    max_workers_total: Annotated[int, Meta(ge=1, le=100_000)] | UnsetType = UNSET
    ageing_s: Annotated[float, Meta(ge=0, le=604_800)] = 0.0
    retention: QueueRetention | UnsetType = UNSET

    def limits(self, changed: Mapping[str, Any]) -> Limits:
        """The limits in force: these, with what was changed at run time put over them. Raises ValidationError."""
        own = {
            "max_per_key": self.max_per_key,
            "rate": None if isinstance(self.rate, UnsetType) else self.rate,
            "rate_per_key": None if isinstance(self.rate_per_key, UnsetType) else self.rate_per_key,
            "max_workers_total": None if isinstance(self.max_workers_total, UnsetType) else self.max_workers_total,
        }
        return msgspec.convert(msgspec.to_builtins(own) | dict(changed), Limits)

    def process_count(self, cores: int | None = None) -> int:
        """How many processes share this queue's workers on this machine, or on one of so many cores; never more than there
        are workers, nor of "cores" more than slots."""
        if self.processes != "cores":
            return min(self.processes, self.workers)
        return min(cpus.usable() if cores is None else cores, self.slots, self.workers)


class Schedule(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One recurring job: what is inserted, and when. What is unset is as its kind declares."""

    kind: str
    args: dict[str, Any] = {}
    cron: str | UnsetType = UNSET
    every_s: float | UnsetType = UNSET
    timezone: str = "UTC"
    backfill_s: Annotated[float, Meta(ge=0, le=31_622_400)] = 0.0
    queue: str | UnsetType = UNSET
    priority: Annotated[int, Meta(ge=PRIORITY_MIN, le=PRIORITY_MAX)] | UnsetType = UNSET
    max_attempts: Annotated[int, Meta(ge=1, le=ATTEMPTS_MAX)] | UnsetType = UNSET
    serial_key: str | UnsetType = UNSET
    job_key: str | UnsetType = UNSET
    job_key_mode: JobKeyMode | UnsetType = UNSET
    metadata: dict[str, Any] | UnsetType = UNSET

    def ticks(self) -> ticks.Ticks:
        """When it is due. Raises ValueError."""
        cron, every_s = self.cron, self.every_s
        return ticks.made(
            None if isinstance(cron, UnsetType) else cron,
            None if isinstance(every_s, UnsetType) else every_s,
            self.timezone,
        )

    def problems(self, name: str) -> list[str]:
        """All that types alone cannot show; each names its key and the fix."""
        keys = {"queue": self.queue, "serial key": self.serial_key, "job key": self.job_key, "kind": self.kind}
        found = [check_name(what, value) for what, value in keys.items() if isinstance(value, str)]
        found.append(check_name("schedule", name))
        try:
            self.ticks()
        except ValueError as error:
            found.append(str(error))
        return [f"schedules.{name}: {problem}" for problem in found if problem]


Ports = list[Annotated[int, Meta(ge=1, le=65_535)]]
PRIVATE_NETWORKS = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")


class KubernetesGroup(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The Deployment of one group of queues."""

    replicas: Annotated[int, Meta(ge=1, le=1000)] = 2
    replicas_max: Annotated[int, Meta(ge=1, le=1000)] = 8
    cpu: Annotated[float, Meta(ge=0.05, le=256)] = 1.0
    memory_soft_mb: Annotated[int, Meta(ge=32, le=1_000_000)] = 200
    jobs_per_worker: Annotated[float, Meta(ge=0.1, le=100_000)] = 10.0
    egress_ports: Ports = []


class KubernetesProgram(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The Deployment and the Service of a program that answers HTTP beside the masters, from the same image."""

    module: str
    port: Annotated[int, Meta(ge=1, le=65_535)]
    health: Annotated[str, Meta(pattern="^/")] = "/"
    drain_timeout_s: Seconds = 30.0
    replicas: Annotated[int, Meta(ge=1, le=1000)] = 2
    cpu: Annotated[float, Meta(ge=0.05, le=256)] = 0.5
    memory_mb: Annotated[int, Meta(ge=32, le=1_000_000)] = 384
    egress_ports: Ports = []


class Kubernetes(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What `wqcore k8s` needs to know beyond the rest of the file; masters do not look at it."""

    name: Annotated[str, Meta(pattern="^[a-z]([a-z0-9-]{0,18}[a-z0-9])?$")] = "wqcore"
    namespace: Annotated[str, Meta(pattern="^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")] = "wqcore"
    image: str | UnsetType = UNSET
    database_port: Annotated[int, Meta(ge=1, le=65_535)] = 5432
    database_networks: list[str] = msgspec.field(default_factory=lambda: list(PRIVATE_NETWORKS))
    monitoring_namespace: str = "monitoring"
    groups: dict[str, KubernetesGroup] = {}
    programs: dict[str, KubernetesProgram] = {}


class Settings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A whole configuration file."""

    database: Database = Database()
    insert: Insert = Insert()
    process: Process = Process()
    retention: Retention = Retention()
    logging: Logging = Logging()
    traces: Traces = Traces()
    watch: Watch = Watch()
    queues: dict[str, Queue] = {}
    schedules: dict[str, Schedule] = {}
    databases: dict[str, Database] = {}
    kubernetes: Kubernetes = Kubernetes()
    app: dict[str, Any] = {}

    def keep_hours(self, queue: str) -> dict[str, int]:
        """Outcome → hours that the queue's finished jobs stay in `history`; 0 keeps none."""
        given = self.queues[queue].retention
        own = QueueRetention() if isinstance(given, UnsetType) else given
        return {
            outcome: getattr(self.retention, f"{outcome}_hours") if isinstance(hours, UnsetType) else hours
            for outcome, hours in (
                ("completed", own.completed_hours),
                ("cancelled", own.cancelled_hours),
                ("discarded", own.discarded_hours),
            )
        }

    def group_of(self, queue: str) -> str:
        """The group of a queue: its own name unless it says otherwise."""
        group = self.queues[queue].group
        return queue if isinstance(group, UnsetType) else group

    def queues_here(self) -> dict[str, Queue]:
        """The queues that this master runs: those of `process.group`, or all."""
        wanted = self.process.group
        if isinstance(wanted, UnsetType):
            return dict(self.queues)
        return {name: queue for name, queue in self.queues.items() if self.group_of(name) == wanted}

    def database_of(self, queue: str) -> str:
        """The database of a queue; [database] for one that the file does not have."""
        return self.queues[queue].database if queue in self.queues else HOME

    def part(self, database: str) -> Settings:
        """The settings of one database: it alone, and its queues. Raises ConfigError when there is none of that name."""
        if database != HOME and database not in self.databases:
            raise ConfigError([f"no database {database!r}: there are {', '.join([HOME, *self.databases])}"])
        if not self.databases:
            return self
        queues = {name: queue for name, queue in self.queues.items() if queue.database == database}
        found = self.database if database == HOME else self.databases[database]
        return msgspec.structs.replace(self, database=found, databases={}, queues=queues)

    def database_here(self) -> str:
        """The database whose queues this master runs. Raises ConfigError when they are in several."""
        found: dict[str, set[str]] = {}
        for name, queue in self.queues_here().items():
            found.setdefault(queue.database, set()).add(self.group_of(name))
        if len(found) > 1:
            where = "; ".join(f"{name} has {', '.join(sorted(groups))}" for name, groups in sorted(found.items()))
            raise ConfigError(
                [f"a master runs queues of one database, and these groups are in several: {where}; choose one by --group"]
            )
        return next(iter(found), HOME)

    def check(self) -> list[str]:
        """All problems that types alone cannot show; each names its key and the fix."""
        problems: list[str] = []
        if isinstance(self.database.dsn, UnsetType) and not self.database.embedded:
            problems.append(
                "database.dsn is not set: write it in the file, set WQCORE_DATABASE__DSN, "
                "or use `embedded = true` for a PostgreSQL of its own"
            )
        if not isinstance(self.database.dsn, UnsetType) and self.database.embedded:
            problems.append("database.dsn and database.embedded are both set: keep one")
        problems += self._problems_of_databases()
        for name, queue in self.queues.items():
            problem = check_name("queue", name)
            if problem:
                problems.append(f"queues: {problem}")
            if queue.process_count() > queue.slots:
                problems.append(
                    f"queues.{name}.processes = {queue.process_count()} is more than its slots = {queue.slots}: "
                    "a process without a slot has no work; raise slots (before the first start) or lower processes"
                )
        for name, schedule in self.schedules.items():
            problems += schedule.problems(name)
        if self.traces.enabled and find_spec("opentelemetry") is None:
            problems.append("traces.enabled = true needs OpenTelemetry: pip install 'wqcore[traces]', or turn it off")
        group = self.process.group
        if not isinstance(group, UnsetType) and not self.queues_here():
            groups = sorted({self.group_of(name) for name in self.queues})
            problems.append(f"process.group {group!r} has no queue; the groups are: {', '.join(groups) or 'none'}")
        if self.process.beat_interval_s * 3 > self.process.dead_after_s:
            problems.append(
                f"process.dead_after_s = {self.process.dead_after_s:g} is less than three beats of "
                f"process.beat_interval_s = {self.process.beat_interval_s:g}: raise the former or lower the latter"
            )
        return problems

    def _problems_of_databases(self) -> list[str]:
        problems = []
        for key, database in {"database": self.database, **_under("databases", self.databases)}.items():
            problem, schema = check_name("schema", database.schema), database.schema
            if problem or len(schema.encode()) > 63 or schema.startswith("pg_") or "%" in schema:
                problems.append(
                    f"{key}.schema {schema!r}: use 1 to 63 bytes without % that do not start with pg_ and are not all blanks"
                )
        for name, database in self.databases.items():
            if not re.fullmatch("[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or name == HOME or len(name) > 63:
                problems.append(
                    f"databases.{name}: call it by small letters, digits and single _, as its environment variable "
                    f"WQCORE_DATABASES__{name.upper()}__DSN can name it, and not {HOME!r}, which is [database]"
                )
            if database.embedded:
                problems.append(f"databases.{name}.embedded: only [database] can be embedded; give this one a dsn")
            elif isinstance(database.dsn, UnsetType):
                problems.append(
                    f"databases.{name}.dsn is not set: write it in the file, or set WQCORE_DATABASES__{name.upper()}__DSN"
                )
            elif (database.dsn, database.schema) == (self.database.dsn, self.database.schema):
                problems.append(f"databases.{name} is [database] once more: give it another dsn or schema")
        groups: dict[str, set[str]] = {}
        for name, queue in self.queues.items():
            groups.setdefault(self.group_of(name), set()).add(queue.database)
            if queue.database != HOME and queue.database not in self.databases:
                known = ", ".join([HOME, *self.databases])
                problems.append(f"queues.{name}.database = {queue.database!r}: there is no such table; known are {known}")
        problems += [
            f"group {group!r} has queues in the databases {', '.join(sorted(found))}: a master runs queues of one, so give "
            "them groups of their own"
            for group, found in groups.items()
            if len(found) > 1
        ]
        return problems


TABLES: dict[str, type[Struct]] = {"databases": Database, "queues": Queue, "schedules": Schedule}
"""Tables that have a table for each name."""


def load(
    path: str | Path, *, environ: Mapping[str, str] | None = None, overrides: Mapping[str, Any] | None = None
) -> Settings:
    """Reads a configuration file.

    Args:
        path: the TOML file.
        environ: the environment (default `os.environ`).
        overrides: dotted key → value, from the command line; None values are left out.

    Raises:
        ConfigError: with all problems found.
    """
    try:
        with Path(path).open(encoding="utf-8") as file:
            problem = trust.problem(path, os.fstat(file.fileno()))
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            [f"cannot read the configuration {path}: {getattr(error, 'strerror', None) or error}"]
        ) from None
    if problem:
        raise ConfigError([problem])
    try:
        tree: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{path} is not valid TOML: {error}"]) from None
    problems = _apply_environment(tree, os.environ if environ is None else environ)
    for key, value in (overrides or {}).items():
        if value is not None:
            _put(tree, key.split("."), value)
    settings, found = _convert(tree)
    problems += found
    if settings is not None:
        problems += settings.check()
    if settings is None or problems:
        raise ConfigError(problems)
    return settings


def _convert(tree: dict[str, Any]) -> tuple[Settings | None, list[str]]:
    """The tree as Settings; on failure every table is tried by itself, so that all problems are found at once."""
    try:
        return msgspec.convert(tree, Settings), []
    except msgspec.ValidationError:
        problems = []
    types = {field.name: field.type for field in msgspec.structs.fields(Settings)}
    for name, value in tree.items():
        if name not in types:
            problems.append(f"unknown table [{name}]: the tables are {', '.join(types)}")
        elif name in TABLES and isinstance(value, dict):
            for key, table in value.items():
                problems += _convert_table(f"{name}.{key}", table, TABLES[name])
        else:
            problems += _convert_table(name, value, types[name])
    return None, problems


def _convert_table(name: str, table: Any, as_type: Any) -> list[str]:
    """The problems of one table, key by key."""
    if not isinstance(table, dict) or not (isinstance(as_type, type) and issubclass(as_type, Struct)):
        return _problem(name, table, as_type)
    types = {field.name: field.type for field in msgspec.structs.fields(as_type)}
    problems = []
    for key, value in table.items():
        if key not in types:
            problems.append(f"unknown key {name}.{key}: the keys of [{name}] are {', '.join(types)}")
        else:
            problems += _problem(f"{name}.{key}", value, types[key])
    problems += [
        f"{name}.{field.name} is missing: the table [{name}] needs it"
        for field in msgspec.structs.fields(as_type)
        if field.required and field.name not in table
    ]
    return problems


def _problem(key: str, value: Any, as_type: Any) -> list[str]:
    try:
        msgspec.convert(value, as_type)
    except msgspec.ValidationError as error:
        secret = key.split(".")[0] in {"database", "databases", "app"} or key.endswith((".args", ".metadata"))
        secret = secret or "password" in str(value) or "://" in str(value)
        shown = "" if secret else f" (it is {value!r})"
        return [f"{key}: {error}{shown}"]
    return []


def _apply_environment(tree: dict[str, Any], environ: Mapping[str, str]) -> list[str]:
    """Puts `WQCORE_A__B=value` at a.b. Values are TOML values where they parse as one, else strings."""
    problems = []
    for variable, text in environ.items():
        if not variable.startswith("WQCORE_"):
            continue
        keys = variable.removeprefix("WQCORE_").lower().split("__")
        if len(keys) < 2 or not all(keys):
            problems.append(f"environment variable {variable}: write it as WQCORE_<TABLE>__<KEY>")
            continue
        _put(tree, keys, _toml_value(text) if keys[-1] not in {"dsn", "password"} else text)
    return problems


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _under(table: str, named: Mapping[str, Database]) -> dict[str, Database]:
    return {f"{table}.{name}": value for name, value in named.items()}


def _put(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = tree.setdefault(key, {})
        if not isinstance(inner, dict):
            return
        tree = inner
    tree[keys[-1]] = value
