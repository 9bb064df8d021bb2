"""What an endpoint declares, as it goes over the wire: the answer to INDEX_ENDPOINT, and what user code registers later.

An index is read loosely (`event`, `trigger` and `integrations` of a job as sent), so that one odd job spoils only its own
registration. `read` makes a type of a part; what does not fit is a permanent failure that names the field. Fields that are
not named here are ignored: later SDKs send more.
"""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from cronsim import CronSim, CronSimError
from msgspec import Meta

import wqcore

T = TypeVar("T")
Key = Annotated[str, Meta(min_length=1)]
CRON_CHARS_MAX = 200
SECONDS_MAX = 2_592_000
"""30 days, as in the SDK's schema; its minimum of 20 s is the SDK's own affair."""


class Declared(msgspec.Struct, frozen=True, rename="camel"):
    """The settings that all structs of this module share."""


class JobVersion(Declared, frozen=True):
    """Names one version of one job."""

    id: str
    version: str


class ConcurrencyLimit(Declared, frozen=True):
    """A limit that all jobs with the same `id` share."""

    id: Key
    limit: int


class QueueOptions(Declared, frozen=True):
    """A queue as SDKs before 2.3 declare it."""

    name: Key
    max_concurrent: int | None = None


class JobMetadata(Declared, frozen=True):
    """A job as its endpoint describes it; `event`, `trigger` and `integrations` as sent."""

    id: Key
    name: str
    version: str
    event: dict[str, Any]
    trigger: dict[str, Any]
    enabled: bool
    integrations: dict[str, Any] = {}
    internal: bool = False
    start_position: str = "latest"
    preprocess_runs: bool = False
    concurrency_limit: int | ConcurrencyLimit | None = None
    queue: str | QueueOptions | None = None


class IntegrationNames(Declared, frozen=True):
    """What people call an integration."""

    name: str | None = None


class IntegrationMetadata(Declared, frozen=True):
    """A service that a job or source uses. HOSTED: its connections are kept by the platform."""

    id: Key
    auth_source: Literal["LOCAL", "HOSTED", "RESOLVER"] = "LOCAL"
    metadata: IntegrationNames = IntegrationNames()


class SourceMetadata(Declared, frozen=True):
    """A source of external events; version 1 lists `events`, version 2 has `options`. Older SDKs send no version."""

    channel: Literal["HTTP", "SQS", "SMTP"]
    key: Key
    version: Literal["1", "2"] = "1"
    integration: IntegrationMetadata | None = None
    params: Any = None
    events: list[str] = []
    options: dict[str, list[str]] = {}
    register_source_job: JobVersion | None = None

    def wanted(self) -> list[tuple[str, str]]:
        """The (option, value) pairs that it asks its service for, each once: two jobs may want the same."""
        options = self.options if self.version == "2" else {"event": self.events}
        return list(dict.fromkeys((name, value) for name, values in options.items() for value in values))


class DynamicTriggerMetadata(Declared, frozen=True):
    """A trigger that the user's code registers at run time, and the jobs that it starts."""

    id: Key
    jobs: list[JobVersion]
    register_source_job: JobVersion | None = None


class DynamicScheduleMetadata(Declared, frozen=True):
    """A schedule that the user's code registers at run time, and the jobs that it starts."""

    id: Key
    jobs: list[JobVersion]


class Index(Declared, frozen=True):
    """What an endpoint holds: the answer to INDEX_ENDPOINT."""

    jobs: list[JobMetadata]
    sources: list[SourceMetadata] = []
    dynamic_triggers: list[DynamicTriggerMetadata] = []
    dynamic_schedules: list[DynamicScheduleMetadata] = []


class EventRule(Declared, frozen=True):
    """Which events start a job."""

    event: str | list[str]
    source: str = "trigger.dev"
    payload: dict[str, Any] | None = None
    context: dict[str, Any] | None = None

    def names(self) -> list[str]:
        """The names of the events."""
        return [self.event] if isinstance(self.event, str) else self.event


class CronOptions(Declared, frozen=True):
    """A cron expression, read in UTC: five fields, or six with seconds first."""

    cron: Annotated[str, Meta(max_length=CRON_CHARS_MAX)]

    def __post_init__(self) -> None:
        try:
            CronSim(self.cron, dt.datetime(2000, 1, 1))
        except (CronSimError, AssertionError, ValueError) as error:
            raise ValueError(f"cron = {self.cron!r}: {error or 'not understood'}") from None


class IntervalOptions(Declared, frozen=True):
    """Seconds between two ticks."""

    seconds: Annotated[int, Meta(ge=1, le=SECONDS_MAX)]


class CronSchedule(Declared, frozen=True, tag_field="type", tag="cron"):
    """Ticks of a calendar."""

    options: CronOptions
    metadata: Any = None
    account_id: str | None = None

    @property
    def times(self) -> dict[str, Any]:
        """The columns that say when it ticks."""
        return {"type": "cron", "cron": self.options.cron, "seconds": None}


class IntervalSchedule(Declared, frozen=True, tag_field="type", tag="interval"):
    """Ticks at equal distances."""

    options: IntervalOptions
    metadata: Any = None
    account_id: str | None = None

    @property
    def times(self) -> dict[str, Any]:
        """The columns that say when it ticks."""
        return {"type": "interval", "cron": None, "seconds": self.options.seconds}


Schedule = CronSchedule | IntervalSchedule


class StaticTrigger(Declared, frozen=True, tag_field="type", tag="static"):
    """Starts the job for each event of the rule."""

    rule: EventRule


class ScheduledTrigger(Declared, frozen=True, tag_field="type", tag="scheduled"):
    """Starts the job at each tick."""

    schedule: Schedule


class DynamicTrigger(Declared, frozen=True, tag_field="type", tag="dynamic"):
    """Names the dynamic trigger or the dynamic schedule that starts the job."""

    id: Key


class InvokeTrigger(Declared, frozen=True, tag_field="type", tag="invoke"):
    """Only a call starts the job."""


Trigger = StaticTrigger | ScheduledTrigger | DynamicTrigger | InvokeTrigger


def read(part: Any, part_type: type[T], what: str) -> T:
    """`part` (decoded JSON) as its type. Raises wqcore.Discard, which names the field in `what`."""
    try:
        return msgspec.convert(part, part_type)
    except msgspec.ValidationError as error:
        raise wqcore.Discard(f"{what} does not fit: {error}") from error
