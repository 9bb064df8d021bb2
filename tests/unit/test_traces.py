"""Each attempt has a span that says what became of it; and where traces are off nobody pays for them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from tests.fix_room import Args, Room, row
from tests.fix_spans import Spans
from wqcore.errors import LeaseLost
from wqcore.job import Job, Row
from wqcore.line.execute import LEASE, SHUTDOWN
from wqcore.line.traces import Tracing, tracing
from wqcore.outcome import Cancel, Discard, Retry, Snooze
from wqcore.settings import Settings
from wqcore.signature import BatchHandler, BatchItem, ThreadHandler

TRACE, PARENT = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
CARRIED = json.dumps({"traceparent": f"00-{TRACE:032x}-{PARENT:016x}-01", "mine": 1})


def carrying(job_id: int, kind: str = "k", metadata: str = CARRIED, **columns: Any) -> tuple[Any, ...]:
    """A claimed job whose insert had a span."""
    found = list(row(job_id, kind, **columns))
    found[Row.METADATA] = metadata.encode()
    return tuple(found)


@pytest.fixture
def traced(room: Room) -> Room:
    """A room that makes spans."""
    room.tracing = Tracing(error_texts=False)
    return room


def attribute(span: ReadableSpan, name: str) -> Any:
    return (span.attributes or {}).get(name)


async def test_an_attempt_is_a_consumer_span_under_the_insert(traced: Room, spans: Spans) -> None:
    inner: list[int] = []

    async def handler(args: Args, job: Job) -> None:
        inner.append(trace.get_current_span().get_span_context().span_id)

    def thread(args: Args, job: Job) -> None:
        inner.append(trace.get_current_span().get_span_context().span_id)

    traced.kind("k", handler)
    traced.kind("t", ThreadHandler(thread, with_job=True))
    traced.start(1).add([carrying(1, attempt=1), carrying(2, "t")])
    await traced.outcomes(2)
    first, second = spans.named("process q")
    assert first.kind == SpanKind.CONSUMER
    assert first.context is not None
    assert second.context is not None
    assert first.context.trace_id == TRACE
    assert first.parent is not None
    assert first.parent.span_id == PARENT
    assert [link.context.span_id for link in first.links] == [PARENT]
    assert dict(first.attributes or {}) == {
        "messaging.system": "wqcore",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "q",
        "messaging.message.id": "1",
        "wqcore.kind": "k",
        "wqcore.attempt": 2,
        "wqcore.outcome": "completed",
    }
    assert first.status.status_code == StatusCode.UNSET
    assert inner == [first.context.span_id, second.context.span_id], "it is current while its handler runs"
    assert not trace.get_current_span().get_span_context().is_valid


@pytest.mark.parametrize("metadata", ['{"mine": 1}', "[1]", "7", "{", '{"traceparent": "nonsense"}', '{"traceparent": 3}'])
async def test_a_job_that_carries_nothing_usable_begins_a_trace(traced: Room, spans: Spans, metadata: str) -> None:
    async def handler(args: Args, job: Job) -> None: ...

    traced.kind("k", handler)
    traced.start(1).add([carrying(1, metadata=metadata), row(2)])
    await traced.outcomes(2)
    assert [(span.parent, len(span.links)) for span in spans.named("process q")] == [(None, 0), (None, 0)]


ERRORS = {
    "returns": None,
    "raises": ValueError("s3cret"),
    "retries": Retry("s3cret"),
    "snoozes": Snooze(1),
    "cancels": Cancel("s3cret"),
    "discards": Discard("s3cret"),
    "loses its lease": LeaseLost("s3cret"),
    "is cancelled from within": asyncio.CancelledError(),
    "leaves": SystemExit(3),
}


@pytest.mark.parametrize("last", [False, True], ids=["first attempt", "last attempt"])
@pytest.mark.parametrize("what", ERRORS)
async def test_a_span_says_what_became_of_its_attempt(traced: Room, spans: Spans, what: str, last: bool) -> None:
    async def handler(args: Args, job: Job) -> None:
        error = ERRORS[what]
        if error is not None:
            raise error

    traced.kind("k", handler)
    executor = traced.start(1)
    executor.add([carrying(1, max_attempts=1 if last else 3)])
    await traced.until(lambda: not executor.running and not executor.waiting)
    check(executor, spans.only("process q"))


@pytest.mark.parametrize("why", ["time-out", "request", SHUTDOWN, LEASE, "deleted"])
async def test_a_span_says_why_its_attempt_was_cancelled(traced: Room, spans: Spans, why: str) -> None:
    async def handler(args: Args, job: Job) -> None:
        await asyncio.sleep(60)

    traced.kind("k", handler, timeout_s=0.01 if why == "time-out" else 60)
    executor = traced.start(1)
    executor.add([carrying(1)])
    await traced.until(lambda: executor.running == 1)
    if why == "request":
        executor.cancel_jobs({1: "s3cret"})
    elif why == "deleted":
        executor.drop_jobs({1})
    elif why != "time-out":
        executor.cancel_running(why)
    await traced.until(lambda: not executor.running)
    span = spans.only("process q")
    check(executor, span)
    assert attribute(span, "error.type") == ("timeout" if why == "time-out" else None)


def check(executor: Any, span: ReadableSpan) -> None:
    """The span has the outcome that the job has."""
    outcome = becomes(executor.outcomes)
    assert attribute(span, "wqcore.outcome") == outcome
    failed = outcome in ("retryable", "discarded")
    assert span.status.status_code == (StatusCode.ERROR if failed else StatusCode.UNSET)
    assert "s3cret" not in span.to_json()


def becomes(outcomes: Any) -> str:
    """What became of the only job, in the words of spans."""
    if outcomes.again:
        return "snoozed" if outcomes.again[0].error is None else "retryable"
    if outcomes.ended:
        return str(outcomes.ended[0].outcome)
    return "completed" if outcomes.done else "interrupted"


async def test_the_text_of_an_error_is_in_a_span_where_logs_have_it(room: Room, spans: Spans) -> None:
    async def handler(args: Args, job: Job) -> None:
        raise ValueError("not so secret")

    room.tracing = Tracing(error_texts=True)
    room.kind("k", handler)
    room.start(1).add([carrying(1)])
    await room.outcomes(1)
    span = spans.only("process q")
    [event] = span.events
    assert span.status.description == "ValueError: not so secret"
    assert dict(event.attributes or {})["exception.message"] == "not so secret"
    assert "in handler" in str(dict(event.attributes or {})["exception.stacktrace"])


async def test_a_batch_is_one_span_linked_to_the_insert_of_each_job(traced: Room, spans: Spans) -> None:
    inner: list[int] = []

    async def handler(items: list[BatchItem[Args]]) -> list[BaseException | None]:
        inner.append(trace.get_current_span().get_span_context().span_id)
        return [ValueError("s3cret") if item.job.id == 2 else None for item in items]

    traced.kind("k", BatchHandler(handler, 3, 30.0))
    traced.start(3).add([carrying(1), carrying(2), row(3)])
    await traced.outcomes(3)
    span = spans.only("process q")
    assert span.context is not None
    assert span.parent is None
    assert [(link.context.span_id, (link.attributes or {})["messaging.message.id"]) for link in span.links] == [
        (PARENT, "1"), (PARENT, "2")
    ]  # fmt: skip
    found = {name: attribute(span, f"wqcore.outcomes.{name}") for name in ("completed", "retryable", "discarded")}
    assert found == {"completed": 2, "retryable": 1, "discarded": None}
    assert attribute(span, "messaging.batch.message_count") == 3
    assert span.status.status_code == StatusCode.ERROR
    assert "s3cret" not in span.to_json()
    assert inner == [span.context.span_id]


async def test_one_job_does_not_see_the_span_of_another(traced: Room, spans: Spans) -> None:
    seats: list[Any] = []

    async def handler(args: Args, job: Job) -> None:
        seats.append(asyncio.current_task())
        current = trace.get_current_span().get_span_context()
        assert current.span_id not in {span.context.span_id for span in spans.all() if span.context}

    traced.kind("k", handler)
    traced.start(1).add([carrying(n) for n in range(1, 6)])
    assert len((await traced.outcomes(5)).done) == 5
    assert len(set(seats)) == 1, "and a seat is not replaced because of spans"


async def test_where_traces_are_off_nothing_stands_around_a_handler(room: Room) -> None:
    async def handler(args: Args, job: Job) -> None: ...

    room.kind("k", handler)
    executor = room.start()
    assert executor._kinds["k"].call is handler
    assert tracing(Settings()) is None


def test_where_traces_are_off_opentelemetry_is_not_imported() -> None:
    program = (
        "import sys, wqcore, wqcore.proc.entry, wqcore.testing, wqcore.cli; wqcore.SyncClient(dsn='postgresql:///x');"
        "sys.exit('opentelemetry' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_without_opentelemetry_traces_are_refused_with_the_remedy() -> None:
    program = (
        "import sys; sys.modules['opentelemetry'] = None; sys.path_importer_cache.clear();"
        "import msgspec, wqcore;"
        "settings = msgspec.convert({'database': {'dsn': 'x'}, 'traces': {'enabled': True}}, wqcore.Settings)\n"
        "try: wqcore.SyncClient(settings)\n"
        "except wqcore.ConfigError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "pip install 'wqcore[traces]'" in run.stdout, run.stderr
