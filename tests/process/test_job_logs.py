"""In a real master's log each line has its job; what a job keeps of them is shown with it; spans reach a collector."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

import wqcore
from tests.fix_master import World, ready, until

TALKING = """
import asyncio, logging, os
import msgspec, psycopg
import wqcore

log = logging.getLogger("shop.talk")

class Talk(msgspec.Struct):
    fail: bool = False
    n: int = 3

def talks(name, **options):
    def declare(function):
        args_type = wqcore.kind(name, max_attempts=2, backoff=lambda attempt: 0.05)(msgspec.defstruct(name, [], bases=(Talk,)))
        of = list[wqcore.BatchItem[args_type]] if options else args_type
        function.__annotations__[next(iter(function.__annotations__))] = of
        wqcore.handler(**options)(function)
        return function
    return declare

@talks("plain")
async def plain(args: None, job: wqcore.Job) -> None:
    for n in range(args.n):
        log.info("step %d", n)
    if args.fail:
        raise RuntimeError("it went wrong")

@talks("threaded")
def threaded(args: None, job: wqcore.Job) -> None:
    log.info("in a thread")

@talks("batched", max_batch=2, max_wait_s=5)
async def batched(items: None) -> None:
    log.info("in a batch")

@talks("transacted")
async def transacted(args: None, job: wqcore.Job) -> None:
    log.info("before")
    async with await psycopg.AsyncConnection.connect(os.environ["WQ_TEST_DSN"]) as conn:
        await job.complete_tx(conn)
    log.info("after")
"""


def started(world: World, monkeypatch: pytest.MonkeyPatch, handlers: str, module: str, **tables: Any) -> Any:
    monkeypatch.setenv("WQ_TEST_DSN", world.dsn)
    (world.folder / f"{module}.py").write_text(handlers)
    config = world.configure(process={"handlers": [module]}, **tables)
    master = world.start(config)
    ready(world)
    return master


def test_lines_of_jobs_name_them_and_are_kept_with_them(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    master = started(
        world, monkeypatch, TALKING, "talking",
        logging={"level": "warning", "format": "json"},
        logging__kinds__plain={"level": "info", "keep_lines": 2},
        logging__kinds__threaded={"level": "info", "keep_lines": 10},
        logging__kinds__batched={"level": "info", "keep_lines": 10},
        logging__kinds__transacted={"keep_lines": 10, "level": "INFO", "sample": 0.0, "tasks": "all"},
    )  # fmt: skip
    [well], [wrong] = world.insert("plain"), world.insert("plain", args={"fail": True}, max_attempts=2)
    [threaded], batch, [transacted] = world.insert("threaded"), world.insert("batched", 2), world.insert("transacted")
    every = [well, wrong, threaded, *batch, transacted]
    until(lambda: world.scalar("select count(*) from wqcore.history") == len(every), "all have ended")
    with wqcore.SyncClient(dsn=world.dsn) as client:
        infos = {job_id: client.job(job_id) for job_id in every}
    kept = {job_id: [line.message for line in info.log] for job_id, info in infos.items() if info is not None}
    dropped = "1 earlier lines were not kept (logging.keep_lines, logging.keep_bytes_max)"
    assert kept == {
        well: [dropped, "step 1", "step 2"],
        wrong: [dropped, "step 1", "step 2"],
        threaded: ["in a thread"],
        batch[0]: ["in a batch"],
        batch[1]: ["in a batch"],
        transacted: ["before"],
    }
    failed = infos[wrong]
    assert failed is not None
    assert [[line.message for line in attempt.log] for attempt in failed.errors] == [[dropped, "step 1", "step 2"]] * 2
    assert failed.log[1].logger == "shop.talk"
    assert failed.log[1].level == "info"
    assert failed.created_at <= failed.log[1].at
    master.send_signal(signal.SIGTERM)
    assert master.wait(20) == 0
    lines = [json.loads(line) for line in world.log().splitlines() if line.startswith("{")]
    said = [line for line in lines if line["logger"] == "shop.talk"]
    assert {(line["message"], line["task_kind"], line.get("job_id"), line.get("attempt"), line["queue"]) for line in said} == {
        *((f"step {n}", "plain", job_id, attempt, "default")
          for job_id, attempt in ((well, 1), (wrong, 1), (wrong, 2)) for n in range(3)),
        ("in a thread", "threaded", threaded, 1, "default"),
        ("in a batch", "batched", None, None, "default"),
    }  # fmt: skip
    assert [line["job_ids"] for line in said if line["task_kind"] == "batched"] == [batch]
    assert [line["message"] for line in lines if line.get("job_id") == wrong and line["logger"] == "wqcore.task"] == [
        "Task failed", "Task discarded",
    ]  # fmt: skip


def test_a_table_for_a_kind_that_nobody_declares_is_found_before_the_start(world: World) -> None:
    (world.folder / "talking.py").write_text(TALKING)
    config = world.configure(process={"handlers": ["talking"]}, logging__kinds__plian={"level": "debug"})
    checked = world.cli(config, "check-config")
    assert checked.returncode == 2
    assert "logging.kinds.plian: no module declares a kind of that name" in checked.stderr


TRACED = """
import msgspec
import wqcore
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

@wqcore.on_start
async def trace_it() -> None:
    provider = TracerProvider(resource=Resource.create({"service.name": "shop"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)

@wqcore.on_stop
async def send_the_rest() -> None:
    trace.get_tracer_provider().shutdown()

@wqcore.kind("first")
class First(msgspec.Struct):
    pass

@wqcore.kind("second", max_attempts=2, backoff=lambda attempt: 0.05)
class Second(msgspec.Struct):
    pass

@wqcore.handler
async def first(args: First) -> None:
    with trace.get_tracer("shop").start_as_current_span("order"):
        await (await wqcore.current_client()).insert(Second())

@wqcore.handler
async def second(args: Second, job: wqcore.Job) -> None:
    if job.attempt == 1:
        raise RuntimeError("s3cret")
"""


class Collector(ThreadingHTTPServer):
    """An OTLP/HTTP receiver: (service, span) of all that it was sent."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Span]] = []
        super().__init__(("127.0.0.1", 0), _Collecting)


class _Collecting(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        body = self.rfile.read(int(self.headers["content-length"]))
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            names = [pair.value.string_value for pair in resource.resource.attributes if pair.key == "service.name"]
            self.server.spans += [(names[0], span) for scope in resource.scope_spans for span in scope.spans]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Says nothing."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    found = Collector()
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


def test_a_chain_of_jobs_reaches_a_collector_as_one_trace(
    world: World, monkeypatch: pytest.MonkeyPatch, collector: Collector
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
    master = started(
        world, monkeypatch, TRACED, "traced", traces={"enabled": True}, logging={"format": "json"}
    )
    world.insert("first")
    until(lambda: world.scalar("select count(*) from wqcore.history") == 2, "both have ended")
    master.send_signal(signal.SIGTERM)
    assert master.wait(20) == 0
    assert {service for service, _ in collector.spans} == {"shop"}
    chain = sorted((span for _, span in collector.spans), key=lambda span: span.start_time_unix_nano)
    assert [span.name for span in chain] == ["process default", "order", "send default", "process default", "process default"]
    root, order, send, failed, well = chain
    assert len({span.trace_id for span in chain}) == 1
    parents = [span.parent_span_id for span in chain]
    assert parents == [b"", root.span_id, order.span_id, send.span_id, send.span_id]
    assert [span.kind for span in (root, send, failed)] == [
        Span.SPAN_KIND_CONSUMER, Span.SPAN_KIND_PRODUCER, Span.SPAN_KIND_CONSUMER
    ]  # fmt: skip
    assert (failed.status.code, well.status.code) == (2, 0)
    assert b"s3cret" not in b"".join(span.SerializeToString() for span in chain)
    [line] = [json.loads(line) for line in world.log().splitlines() if "Task failed" in line]
    assert line["trace_id"] == root.trace_id.hex(), "a failure in the log leads to its trace"
