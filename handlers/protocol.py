"""What the platform tells an endpoint about a run, and what it may answer; pure, as `@trigger.dev/sdk` 2.3.18 has it.

JSON that belongs to users (payloads, outputs, errors) passes through as it was written: `msgspec.Raw` in, `Raw` out, so no
number is rounded and nothing is decoded twice. Fields that the SDK's schemas do not allow to be null are left out.
"""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

import wqcore

T = TypeVar("T")
Instant = Annotated[dt.datetime, Meta(tz=True)]
NULL: Final = Raw(b"null")


class Body(msgspec.Struct, frozen=True, rename="camel", gc=False):
    """A part of a request's body."""


class EventBody(Body, frozen=True):
    """The event that made the run; `id` is the one that its sender gave."""

    id: str
    name: str
    payload: Raw
    context: Raw
    timestamp: dt.datetime


class JobBody(Body, frozen=True):
    """The job, by the id that the user's code gives it."""

    id: str
    version: str


class RunBody(Body, frozen=True):
    """The run."""

    id: str
    is_test: bool
    is_retry: bool
    started_at: dt.datetime


class EnvironmentBody(Body, frozen=True):
    """The environment that the run belongs to."""

    id: str
    slug: str
    type: str


class OrganizationBody(Body, frozen=True):
    """The organization that owns it."""

    id: str
    title: str
    slug: str


class ProjectBody(Body, frozen=True):
    """The project of the environment."""

    id: str
    name: str
    slug: str


class AccountBody(Body, frozen=True):
    """The user's own user, whose connections the run has."""

    id: str
    metadata: None = None


class ConnectionBody(Body, frozen=True):
    """A token that the run may use."""

    type: str
    access_token: str
    scopes: list[str]


class RunJobBody(Body, frozen=True, kw_only=True):
    """The body of EXECUTE_JOB; PREPROCESS_RUN takes what it needs of it."""

    event: EventBody
    job: JobBody
    run: RunBody
    environment: EnvironmentBody
    organization: OrganizationBody
    project: ProjectBody
    account: AccountBody | UnsetType = UNSET
    source: Raw | UnsetType = UNSET
    tasks: Raw | UnsetType = UNSET
    connections: dict[str, ConnectionBody] | UnsetType = UNSET
    yielded_executions: list[str] | UnsetType = UNSET


class Answer(msgspec.Struct, frozen=True, rename="camel", tag_field="status", kw_only=True):
    """The answer to EXECUTE_JOB."""


class TaskRef(msgspec.Struct, frozen=True, rename="camel"):
    """The task that an answer is about."""

    id: str
    callback_url: str | None = None


class Success(Answer, frozen=True, tag="SUCCESS"):
    output: Raw = NULL


class Failure(Answer, frozen=True, tag="ERROR"):
    error: Raw
    task: TaskRef | None = None


class ResumeWithTask(Answer, frozen=True, tag="RESUME_WITH_TASK"):
    task: TaskRef


class RetryWithTask(Answer, frozen=True, tag="RETRY_WITH_TASK"):
    task: TaskRef
    error: Raw
    retry_at: Instant


class Canceled(Answer, frozen=True, tag="CANCELED"):
    pass


class InvalidPayload(Answer, frozen=True, tag="INVALID_PAYLOAD"):
    errors: Raw


class UnresolvedAuth(Answer, frozen=True, tag="UNRESOLVED_AUTH_ERROR"):
    issues: Raw


class Yield(Answer, frozen=True, tag="YIELD_EXECUTION"):
    key: Annotated[str, Meta(max_length=1000)]


class AutoYield(Answer, frozen=True, tag="AUTO_YIELD_EXECUTION"):
    pass


class AutoYieldWithCompletedTask(Answer, frozen=True, tag="AUTO_YIELD_EXECUTION_WITH_COMPLETED_TASK"):
    """`output` is JSON in a string, as in the SDK's completeTask."""

    id: str
    output: str | None = None
    properties: Raw = NULL


class AutoYieldRateLimit(Answer, frozen=True, tag="AUTO_YIELD_RATE_LIMIT"):
    """`reset` is in milliseconds since 1970."""

    reset: Annotated[float, Meta(ge=0, le=1e14)]


Ending = Success | Failure | Canceled | InvalidPayload | UnresolvedAuth
Going = ResumeWithTask | RetryWithTask | Yield | AutoYield | AutoYieldWithCompletedTask | AutoYieldRateLimit


class ResumeWithParallelTask(Answer, frozen=True, tag="RESUME_WITH_PARALLEL_TASK"):
    """`child_errors` has an answer for each child of io.parallel that has not succeeded."""

    child_errors: Annotated[list[Ending | Going], Meta(min_length=1, max_length=1000)]


class Preprocessed(msgspec.Struct, frozen=True, rename="camel"):
    """The answer to PREPROCESS_RUN."""

    abort: bool
    properties: Raw = NULL


class End(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ends: its final status, its output as JSON, an error for people, and the task that failed."""

    status: str
    output: str = "null"
    error: str | None = None
    failed_task: str | None = None


execution_answer: Final = msgspec.json.Decoder(Ending | Going | ResumeWithParallelTask)
preprocess_answer: Final = msgspec.json.Decoder(Preprocessed)
_encode = msgspec.json.Encoder().encode


def request_body(begun: Any, connections: dict[str, ConnectionBody]) -> bytes:
    """The body that tells an endpoint of the execution `begun`, a row of begin_execution.sql."""
    return _encode(
        RunJobBody(
            event=EventBody(
                begun.event_id, begun.event_name, Raw(begun.payload), Raw(begun.context or "null"), begun.timestamp
            ),
            job=JobBody(begun.job_slug, begun.version),
            run=RunBody(begun.run_id, begun.is_test, begun.is_retry, begun.started_at),
            environment=EnvironmentBody(begun.environment_id, begun.environment_slug, begun.environment_type),
            organization=OrganizationBody(begun.organization_id, begun.organization_title, begun.organization_slug),
            project=ProjectBody(begun.project_id, begun.project_name, begun.project_slug),
            account=AccountBody(begun.account_id) if begun.account_id else UNSET,
            source=Raw(begun.source_context) if begun.source_context else UNSET,
            tasks=Raw(begun.tasks) if begun.tasks else UNSET,
            connections=connections or UNSET,
            yielded_executions=begun.yielded or UNSET,
        )
    )


def read(data: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """The answer in `data`. Raises wqcore.Discard, which names the field or the status that does not fit."""
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise wqcore.Discard(f"the endpoint's answer does not fit: {error}") from error


def end_of(answer: Ending) -> End:
    """How a run with this answer ends."""
    match answer:
        case Success(output=output):
            return End(status="SUCCESS", output=text(output))
        case Failure(error=error, task=task):
            return End(
                status="FAILURE", output=text(error), error=message_of(error), failed_task=task.id if task else None
            )
        case InvalidPayload(errors=errors):
            return End(status="INVALID_PAYLOAD", output=text(errors), error="the payload does not fit the job's schema")
        case UnresolvedAuth(issues=issues):
            return End(status="UNRESOLVED_AUTH", output=text(issues), error="a connection could not be resolved")
        case Canceled():
            return End(status="CANCELED")


def failure(message: str) -> End:
    """The end of a run that fails for a reason of the platform."""
    return End(status="FAILURE", output=_encode({"message": message}).decode(), error=message)


def text(raw: Raw) -> str:
    """`raw` as a parameter of a statement."""
    return bytes(raw).decode()


def message_of(error: Raw) -> str:
    """The message in an error as the SDK sends it, for people; at most 1,000 characters."""
    try:
        found = msgspec.json.decode(error, type=dict[str, Any]).get("message")
    except msgspec.DecodeError:
        found = None
    return (found if isinstance(found, str) else text(error))[:1000].replace("\0", "\N{REPLACEMENT CHARACTER}")
