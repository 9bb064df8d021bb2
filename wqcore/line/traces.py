"""A trace follows a job: the span of its insert travels in its metadata and is the parent of the span of each attempt.

Spans are those of OpenTelemetry's conventions for messaging: `send <queue>` (PRODUCER) around an insert, or around all of
`insert_many`, and `process <queue>` (CONSUMER) around each attempt, which is the caller's current span while the handler
runs, so what it inserts belongs to the same trace. A batch is one span, linked to the insert of each of its jobs.

The context is written and read by the program's propagator (W3C's traceparent and tracestate, unless it chose another).
Metadata that has a traceparent already is left as it is. Where traces are off nothing here is called and OpenTelemetry is
not imported. A crash loses the spans that the program's exporter has not sent.

https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from wqcore.db.request import Request
from wqcore.errors import ConfigError, LeaseLost
from wqcore.job import Job
from wqcore.line.insert import Inserted, KeyedJob, NewJob
from wqcore.line.seat import CANCELLED, GONE, LEASE, SHUTDOWN, TIMEOUT, Seat
from wqcore.line.settle import clean, frames_of, text_of
from wqcore.outcome import Cancel, Discard, Snooze
from wqcore.settings import Settings
from wqcore.signature import BatchHandler, BatchItem, Handler
from wqcore.version import VERSION

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, Span

_ENDED_WELL = ("completed", "snoozed", "cancelled", "interrupted")


def tracing(settings: Settings) -> Tracing | None:
    """What makes spans, or None where they are off. Raises ConfigError."""
    if not settings.traces.enabled:
        return None
    try:
        return Tracing(error_texts=settings.logging.errors == "text")
    except ImportError:
        raise ConfigError(["traces.enabled = true needs OpenTelemetry: pip install 'wqcore[traces]'"]) from None


class Tracing:
    """Makes spans of inserts and runs with the tracer of the program's provider, whenever that is set up."""

    def __init__(self, *, error_texts: bool) -> None:
        from opentelemetry import context, propagate, trace

        self.trace = trace
        self.propagate = propagate
        self.context = context
        self.tracer = trace.get_tracer("wqcore", VERSION)
        self._error_texts = error_texts

    # --- inserting --------------------------------------------------------------------------------------------------

    def sending(
        self, row: NewJob | KeyedJob, write: Callable[[NewJob | KeyedJob], Request[Inserted]]
    ) -> Request[Inserted]:
        """Inserts one job in a span."""
        job = row if isinstance(row, NewJob) else row.job
        span = self.tracer.start_span(
            f"send {job.queue}",
            kind=self.trace.SpanKind.PRODUCER,
            attributes=_attributes("send", job.queue) | {"wqcore.kind": job.kind},
        )
        try:
            inserted = yield from write(self.stamped(row, self.carrier(span)))
            what = "skipped" if inserted.skipped else "replaced" if inserted.replaced else "inserted"
            span.set_attributes({"messaging.message.id": str(int(inserted)), "wqcore.insert": what})
            return inserted
        except BaseException as error:
            self.failed(span, error)
            raise
        finally:
            span.end()

    def sending_many(self) -> SendingMany:
        """The span of a bulk insert."""
        return SendingMany(self)

    def carrier(self, span: Span) -> str:
        """The context of a span as JSON, as metadata begin with it; empty when there is nothing to carry."""
        found: dict[str, str] = {}
        self.propagate.inject(found, self.trace.set_span_in_context(span))
        return msgspec.json.encode(found).decode() if found else ""

    def stamped(self, row: NewJob | KeyedJob, carrier: str) -> NewJob | KeyedJob:
        """The row with the context in its metadata, unless the caller has put one there."""
        if isinstance(row, KeyedJob):
            return row._replace(job=self._stamped(row.job, carrier))
        return self._stamped(row, carrier)

    def _stamped(self, row: NewJob, carrier: str) -> NewJob:
        metadata = row.metadata
        if not carrier or (metadata is not None and '"traceparent"' in metadata):
            return row
        if metadata is None or metadata == "{}":
            return row._replace(metadata=carrier)
        return row._replace(metadata=f"{carrier[:-1]},{metadata[1:]}")

    # --- running ----------------------------------------------------------------------------------------------------

    def running(self, call: Handler) -> Handler:
        """`call` in a span for each run."""
        return _Run(self, call)

    def batch(self, handler: BatchHandler) -> BatchHandler:
        """`handler` in a span for each batch."""
        return _Batch(self, handler)

    def created(self, metadata: bytes | None) -> Context:
        """The context that the insert of a job has put into its metadata; an empty one where there is none."""
        carried = {}
        if metadata is not None:
            try:
                found = msgspec.json.decode(metadata)
            except (msgspec.DecodeError, RecursionError):
                found = None  # written by SQL; the handler will meet it
            if isinstance(found, dict):
                carried = {name: value for name, value in found.items() if isinstance(value, str)}
        return self.propagate.extract(carried, self.context.Context())

    def trace_id(self, metadata: bytes | None) -> str | None:
        """The trace that the insert of a job belongs to, as logs have it."""
        found = self.trace.get_current_span(self.created(metadata)).get_span_context()
        return self.trace.format_trace_id(found.trace_id) if found.is_valid else None

    def link(self, created: Context, attributes: dict[str, Any] | None = None) -> list[Link]:
        """A link to the span of the insert, if there is one."""
        found = self.trace.get_current_span(created).get_span_context()
        return [self.trace.Link(found, attributes)] if found.is_valid else []

    def failed(self, span: Span, error: BaseException, reason: str | None = None) -> None:
        """Marks a span as failed. The text of an error is in it only where logs have it, too."""
        name = type(error).__qualname__
        span.set_attribute("error.type", reason or name)
        text = clean(text_of(error)) if self._error_texts else None
        if reason is None:
            event = {"exception.type": name, "exception.stacktrace": "\n".join(frames_of(error))}
            span.add_event("exception", event if text is None else event | {"exception.message": text})
        shown = reason or (name if text is None else f"{name}: {text}")
        span.set_status(self.trace.Status(self.trace.StatusCode.ERROR, shown))


class SendingMany:
    """The span of a bulk insert, whose context all of its jobs carry."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._span = tracing.tracer.start_span(
            "send", kind=tracing.trace.SpanKind.PRODUCER, attributes=_attributes("send", None)
        )
        self._carrier = tracing.carrier(self._span)
        self._queues: set[str] = set()
        self._count = 0

    def stamped(self, row: NewJob | KeyedJob) -> NewJob | KeyedJob:
        """The row with the span's context."""
        self._count += 1
        self._queues.add((row if isinstance(row, NewJob) else row.job).queue)
        return self._tracing.stamped(row, self._carrier)

    def end(self, error: BaseException | None) -> None:
        """Ends the span with what has become of the insert."""
        self._span.set_attribute("messaging.batch.message_count", self._count)
        if len(self._queues) == 1:
            [queue] = self._queues
            self._span.update_name(f"send {queue}")
            self._span.set_attribute("messaging.destination.name", queue)
        if error is not None:
            self._tracing.failed(self._span, error)
        self._span.end()


class _Run:
    """A handler with a span around each of its runs."""

    def __init__(self, tracing: Tracing, call: Handler) -> None:
        self._tracing = tracing
        self._call = call

    async def __call__(self, args: Any, job: Job) -> None:
        tracing = self._tracing
        created = tracing.created(job.metadata)
        span = tracing.tracer.start_span(
            f"process {job.queue}",
            created,
            kind=tracing.trace.SpanKind.CONSUMER,
            links=tracing.link(created),
            attributes=_attributes("process", job.queue) | _of_job(job),
        )
        token = tracing.context.attach(tracing.trace.set_span_in_context(span, created))
        try:
            await self._call(args, job)
            span.set_attribute("wqcore.outcome", "completed")
        except BaseException as error:
            outcome = outcome_of(job, error)
            span.set_attribute("wqcore.outcome", outcome)
            if outcome not in _ENDED_WELL:
                tracing.failed(span, error, "timeout" if _why(job) == TIMEOUT else None)
            raise
        finally:
            tracing.context.detach(token)
            span.end()


class _Batch(BatchHandler):
    """A batch handler with a span around each of its runs."""

    def __init__(self, tracing: Tracing, handler: BatchHandler) -> None:
        super().__init__(handler.function, handler.max_batch, handler.max_wait_s)
        self._tracing = tracing

    async def run(self, items: list[BatchItem[Any]]) -> list[BaseException | None]:
        tracing, jobs = self._tracing, [item.job for item in items]
        queue = jobs[0].queue
        links = [link for job in jobs for link in tracing.link(tracing.created(job.metadata), _of_job(job))]
        span = tracing.tracer.start_span(
            f"process {queue}",
            tracing.context.Context(),
            kind=tracing.trace.SpanKind.CONSUMER,
            links=links,
            attributes=_attributes("process", queue)
            | {"wqcore.kind": jobs[0].kind, "messaging.batch.message_count": len(jobs)},
        )
        token = tracing.context.attach(tracing.trace.set_span_in_context(span, tracing.context.Context()))
        try:
            errors = await super().run(items)
            outcomes = [
                "completed" if error is None else outcome_of(job, error)
                for job, error in zip(jobs, errors, strict=True)
            ]
            span.set_attributes({f"wqcore.outcomes.{name}": outcomes.count(name) for name in sorted(set(outcomes))})
            bad = [at for at, outcome in enumerate(outcomes) if outcome not in _ENDED_WELL]
            if bad:
                first = errors[bad[0]]
                assert first is not None  # noqa: S101 - it did not complete
                tracing.failed(span, first, "timeout" if _why(jobs[bad[0]]) == TIMEOUT else None)
            return errors
        finally:
            tracing.context.detach(token)
            span.end()


def outcome_of(job: Job, error: BaseException) -> str:
    """What becomes of a job whose run ended with `error`; `line/ledger.py` decides it, a test holds the two together."""
    why = _why(job)
    if why == GONE or isinstance(error, LeaseLost):
        return "interrupted"
    if why == CANCELLED and not isinstance(error, Discard):
        return "cancelled"
    if isinstance(error, asyncio.CancelledError) and (why in (SHUTDOWN, LEASE) or (why is None and job.stopping)):
        return "interrupted"
    for kind, outcome in ((Snooze, "snoozed"), (Cancel, "cancelled"), (Discard, "discarded")):
        if isinstance(error, kind):
            return outcome
    return "discarded" if job.attempt >= job.max_attempts else "retryable"


def _why(job: Job) -> str | None:
    """Why a run was cancelled, if it was."""
    return job._run_side.why if isinstance(job._run_side, Seat) else None


def _attributes(operation: str, queue: str | None) -> dict[str, Any]:
    found = {"messaging.system": "wqcore", "messaging.operation.name": operation, "messaging.operation.type": operation}
    return found if queue is None else found | {"messaging.destination.name": queue}


def _of_job(job: Job) -> dict[str, Any]:
    return {"messaging.message.id": str(job.id), "wqcore.kind": job.kind, "wqcore.attempt": job.attempt}
