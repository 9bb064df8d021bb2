"""The context of whoever inserts a job reaches its handler, by every way of inserting, and goes on to what that inserts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

import wqcore
from tests.fix_pg import Fresh
from tests.fix_spans import Spans
from wqcore.backoff import river
from wqcore.catalog import Catalog, Kind
from wqcore.client import Client, SyncClient
from wqcore.errors import InvalidArgs
from wqcore.job import Job
from wqcore.settings import Settings, Traces
from wqcore.testing.crew import Crew


class Link(msgspec.Struct):
    left: int = 0


@pytest.fixture
def catalog() -> Catalog:
    found = Catalog()
    kind = Kind(
        "link", Link, queue="default", serial_key=None, priority=1, max_attempts=3, timeout_s=60, backoff=river, planned=False
    )  # fmt: skip

    async def handler(args: Link, job: Job) -> None:
        if args.left:
            client = await wqcore.current_client()
            client._catalog = found  # the client of a process has the program's catalog, this test has its own
            await client.insert(Link(args.left - 1))

    found.declare(kind)
    kind.handler = handler
    return found


@pytest.fixture
def traced(database: Fresh, spans: Spans) -> Settings:
    return msgspec.structs.replace(
        database.settings,
        traces=Traces(enabled=True),
        database=msgspec.structs.replace(database.settings.database, dsn=database.dsn),
    )


@pytest_asyncio.fixture
async def client(traced: Settings, catalog: Catalog) -> AsyncIterator[Client]:
    async with Client(traced, catalog=catalog) as found:
        yield found


async def work(settings: Settings, dsn: str, catalog: Catalog) -> None:
    """Works off all jobs, with the settings of a master that traces."""
    queues = {"default": msgspec.structs.replace(settings.queues["default"], poll_interval_s=0.1, fetch_cooldown_s=0.0)}
    crew = Crew(msgspec.structs.replace(settings, queues=queues), dsn, catalog)
    await crew.start()
    async with asyncio.timeout(20):
        while not await crew.idle():
            await crew.beat()
            await asyncio.sleep(0.01)
    await crew.stop(at_once=False)


async def by_insert(client: Client, conn: Any) -> None:
    await client.insert(Link())


async def by_insert_tx(client: Client, conn: Any) -> None:
    async with conn.transaction():
        await client.insert_tx(conn, Link())


async def by_enqueue(client: Client, conn: Any) -> None:
    await client.enqueue("link", {"left": 0})


async def by_enqueue_tx(client: Client, conn: Any) -> None:
    await client.enqueue("link", {"left": 0}, tx=conn)


async def by_insert_many(client: Client, conn: Any) -> None:
    await client.insert_many([Link()])


async def with_a_job_key(client: Client, conn: Any) -> None:
    await client.insert(Link(), job_key="only")


async def many_with_metadata(client: Client, conn: Any) -> None:
    await client.insert_many([(Link(), wqcore.InsertOptions(metadata={"tab\t": "\\"}, job_key="k"))])


async def by_the_sync_client(client: Client, conn: Any) -> None:
    with SyncClient(client_settings(client), catalog=client._catalog) as sync:
        sync.insert(Link())


async def many_by_the_sync_client(client: Client, conn: Any) -> None:
    with SyncClient(client_settings(client), catalog=client._catalog) as sync:
        sync.insert_many([Link()])


def client_settings(client: Client) -> Settings:
    return Settings(database=client._routes.home.database, traces=Traces(enabled=True))


WAYS = [
    by_insert, by_insert_tx, by_enqueue, by_enqueue_tx, by_insert_many, with_a_job_key, many_with_metadata,
    by_the_sync_client, many_by_the_sync_client,
]  # fmt: skip


def ids(span: ReadableSpan) -> tuple[int, int]:
    assert span.context is not None
    return span.context.trace_id, span.context.span_id


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_the_run_of_a_job_is_in_the_trace_of_its_insert(
    traced: Settings, database: Fresh, catalog: Catalog, client: Client, aconn: Any, spans: Spans,
    way: Callable[[Client, Any], Awaitable[None]],
) -> None:  # fmt: skip
    with trace.get_tracer("shop").start_as_current_span("request") as request:
        await way(client, aconn)
    await work(traced, database.dsn, catalog)
    send, process = spans.only("send default"), spans.only("process default")
    assert send.kind == SpanKind.PRODUCER
    assert send.parent is not None
    assert send.parent.span_id == request.get_span_context().span_id
    assert process.parent is not None
    assert (process.parent.trace_id, process.parent.span_id) == ids(send)
    assert [(link.context.trace_id, link.context.span_id) for link in process.links] == [ids(send)]
    [(job_id, metadata)] = database.sql("select id, metadata from {s}.history")
    assert (process.attributes or {})["messaging.message.id"] == str(job_id)
    assert metadata.pop("traceparent")
    assert metadata == ({"tab\t": "\\"} if way is many_with_metadata else {})
    sent = dict(send.attributes or {})
    if "many" in way.__name__:
        assert sent["messaging.batch.message_count"] == 1
    else:
        assert (sent["messaging.message.id"], sent["wqcore.insert"]) == (str(job_id), "inserted")


async def test_a_chain_of_jobs_is_one_trace(
    traced: Settings, database: Fresh, catalog: Catalog, client: Client, spans: Spans
) -> None:
    await client.insert(Link(3))
    await work(traced, database.dsn, catalog)
    chain = sorted(spans.all(), key=lambda span: span.start_time or 0)
    assert [span.name for span in chain] == ["send default", "process default"] * 4
    assert len({ids(span)[0] for span in chain}) == 1
    assert [span.parent and span.parent.span_id for span in chain] == [None, *(ids(span)[1] for span in chain[:-1])]


async def test_a_context_that_the_caller_has_put_into_the_metadata_stays(
    database: Fresh, client: Client, spans: Spans
) -> None:
    own = f"00-{7:032x}-{8:016x}-01"
    await client.insert(Link(), metadata={"traceparent": own})
    assert database.one("select metadata::text from {s}.job") == f'{{"traceparent":"{own}"}}'


async def test_an_insert_that_fails_is_a_span_that_has_failed(database: Fresh, client: Client, spans: Spans) -> None:
    await client.insert(Link())
    database.sql("alter table {s}.job rename to gone")
    with pytest.raises(Exception, match=r"."):
        await client.insert(Link())
    with pytest.raises(Exception, match=r"."):
        await client.insert_many([Link()])
    first, single = spans.named("send default")
    [many] = [span for span in spans.all() if span.name == "send"]
    assert first.status.status_code == StatusCode.UNSET
    for span in (single, many):
        assert span.status.status_code == StatusCode.ERROR
        assert (span.attributes or {})["error.type"]


async def test_refused_args_make_no_job_and_end_the_span_of_a_bulk(database: Fresh, client: Client, spans: Spans) -> None:
    with pytest.raises(InvalidArgs):
        await client.insert_many([Link(), Link("x")])  # type: ignore[arg-type]
    [many] = spans.all()
    assert (many.attributes or {})["error.type"] == "InvalidArgs"
    assert database.one("select count(*) from {s}.job") == 0


async def test_a_skipped_insert_says_so(client: Client, spans: Spans) -> None:
    first = await client.insert(Link(), job_key="only")
    await client.insert(Link(), job_key="only", job_key_mode="unsafe_dedupe")
    await client.insert(Link(), job_key="only")
    found = [dict(span.attributes or {}) for span in spans.named("send default")]
    assert [span["wqcore.insert"] for span in found] == ["inserted", "skipped", "replaced"]
    assert {span["messaging.message.id"] for span in found} == {str(int(first))}


async def test_where_traces_are_off_metadata_stay_empty(database: Fresh, catalog: Catalog, spans: Spans) -> None:
    with trace.get_tracer("shop").start_as_current_span("request"):
        async with Client(database.settings, dsn=database.dsn, catalog=catalog) as client:
            await client.insert(Link())
            await client.insert_many([Link()])
    assert database.sql("select metadata from {s}.job") == [(None,), (None,)]
    assert [span.name for span in spans.all()] == ["request"]
