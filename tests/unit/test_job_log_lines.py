"""What a handler logs carries its job, goes by the level and the sample of its kind, and is kept within bounds."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import threading
from typing import Any

import pytest

from tests.fix_log import Begin, said
from tests.fix_room import Args, Room, row
from wqcore.job import Job
from wqcore.line.voice import LINE_BYTES, Kept, Voice, share_of
from wqcore.outcome import Snooze
from wqcore.settings import KindLogging, Logging
from wqcore.signature import BatchHandler, BatchItem, ThreadHandler
from wqcore.watch.log import JobContextFilter

shop = logging.getLogger("shop")


def lines(stream: io.TextIOWrapper, logger: str = "shop") -> list[dict[str, Any]]:
    return [found for found in map(json.loads, said(stream).splitlines()) if found["logger"] == logger]


def about(line: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(line.get(name) for name in ("message", "task_kind", "job_id", "queue", "attempt"))


def listen(begin: Begin, room: Room, **settings: Any) -> io.TextIOWrapper:
    room.log_settings = Logging(format="json", **settings)
    return begin(room.log_settings)


async def test_every_line_of_a_handler_names_its_job_in_tasks_and_threads_too(begin: Begin, room: Room) -> None:
    async def inner() -> None:
        shop.info("in a task")
        await asyncio.to_thread(shop.info, "in a thread of a task")

    async def handler(args: Args, job: Job) -> None:
        shop.info("in the handler")
        await asyncio.create_task(inner())

    def thread(args: Args, job: Job) -> None:
        shop.info("in its thread")

    stream = listen(begin, room)
    room.kind("k", handler)
    room.kind("t", ThreadHandler(thread, with_job=True))
    room.start(1).add([row(1), row(2, "t", attempt=2)])
    shop.info("outside")
    await room.outcomes(2)
    assert [about(line) for line in lines(stream)] == [
        ("outside", None, None, None, None),
        ("in the handler", "k", 1, "q", 1),
        ("in a task", "k", 1, "q", 1),
        ("in a thread of a task", "k", 1, "q", 1),
        ("in its thread", "t", 2, "q", 3),
    ]


async def test_a_line_of_a_batch_names_its_jobs_and_one_of_a_single_job_that_job(begin: Begin, room: Room) -> None:
    async def handler(items: list[BatchItem[Args]]) -> None:
        shop.info("%d jobs", len(items))
        await asyncio.to_thread(shop.info, "in a thread")

    stream = listen(begin, room)
    room.kind("k", BatchHandler(handler, 2, 30.0))
    room.kind("one", BatchHandler(handler, 1, 30.0))
    room.start(2).add([row(1), row(2), row(3, "one")])
    await room.outcomes(3)
    found = lines(stream)
    assert {(line["message"], line["task_kind"], tuple(line.get("job_ids", ())), line.get("job_id")) for line in found} == {
        ("2 jobs", "k", (1, 2), None),
        ("in a thread", "k", (1, 2), None),
        ("1 jobs", "one", (), 3),
        ("in a thread", "one", (), 3),
    }


async def test_a_task_that_outlives_its_job_logs_without_it(begin: Begin, room: Room) -> None:
    ended, left = asyncio.Event(), []

    async def outlive() -> None:
        await ended.wait()
        shop.info("late")

    async def single(args: Args, job: Job) -> None:
        left.append(asyncio.create_task(outlive()))

    async def batch(items: list[BatchItem[Args]]) -> None:
        left.append(asyncio.create_task(outlive()))

    stream = listen(begin, room)
    room.kind("k", single)
    room.kind("b", BatchHandler(batch, 1, 30.0))
    room.start().add([row(1), row(2, "b")])
    await room.outcomes(2)
    ended.set()
    await asyncio.gather(*left)
    assert [about(line) for line in lines(stream)] == [("late", None, None, None, None)] * 2


async def test_what_a_program_says_itself_of_a_line_stays(begin: Begin, room: Room) -> None:
    async def handler(args: Args, job: Job) -> None:
        shop.info("mine", extra={"queue": "at the till", "attempt": "second"})

    stream = listen(begin, room)
    room.kind("k", handler)
    room.start().add([row(1)])
    await room.outcomes(1)
    assert [about(line) for line in lines(stream)] == [("mine", "k", 1, "at the till", "second")]


async def test_a_programs_own_log_handler_gets_the_fields_by_the_filter(room: Room) -> None:
    stream = io.StringIO()
    own = logging.StreamHandler(stream)
    own.setFormatter(logging.Formatter("%(task_kind)s/%(job_id)s %(message)s"))
    own.addFilter(JobContextFilter())

    async def handler(args: Args, job: Job) -> None:
        shop.warning("hello")

    room.kind("k", handler)
    shop.addHandler(own)
    try:
        room.start().add([row(5)])
        await room.outcomes(1)
    finally:
        shop.removeHandler(own)
    assert stream.getvalue() == "k/5 hello\n"


async def test_each_kind_has_its_own_level_under_its_former_names_too(begin: Begin, room: Room) -> None:
    async def handler(args: Args, job: Job) -> None:
        for level in (logging.DEBUG, logging.INFO, logging.WARNING):
            shop.log(level, job.kind)

    stream = listen(
        begin, room, tasks="all", kinds={"loud": KindLogging(level="DEBUG"), "quiet": KindLogging(level="warning")}
    )
    for name, aliases in (("loud", ("loud_once",)), ("plain", ()), ("quiet", ())):
        room.kind(name, handler, aliases=aliases)
    room.start(1).add([row(1, "loud"), row(2, "loud_once"), row(3, "plain"), row(4, "quiet")])
    shop.debug("outside")
    await room.outcomes(4)
    levels = [(line["job_id"], line["level"]) for line in lines(stream)]
    assert levels == [
        (1, "debug"), (1, "info"), (1, "warning"), (2, "debug"), (2, "info"), (2, "warning"), (3, "info"), (3, "warning"),
        (4, "warning"),
    ]  # fmt: skip
    started = [line["job_id"] for line in lines(stream, "wqcore.task") if line["message"] == "Task started"]
    assert started == [1, 2, 3]


async def test_a_sample_takes_whole_jobs_and_every_failure(begin: Begin, room: Room) -> None:
    async def handler(args: Args, job: Job) -> None:
        shop.info("works")
        shop.warning("careful")
        if job.id % 10 == 0:
            raise ValueError

    stream = listen(begin, room, tasks="all", kinds={"k": KindLogging(sample=0.2)})
    room.kind("k", handler)
    room.kind("all", handler)
    room.start(4).add([row(n) for n in range(1, 201)] + [row(n, "all") for n in range(201, 211)])
    await room.outcomes(210)
    chosen = {n for n in range(1, 201) if share_of(n) < 0.2 * 2**32}
    assert 35 <= len(chosen) <= 45
    tens = {n for n in range(1, 201) if n % 10 == 0}
    of_k = [line for line in lines(stream, "wqcore.task") + lines(stream) if line["task_kind"] == "k"]
    said_of = {
        message: {line["job_id"] for line in of_k if line["message"] == message}
        for message in ("Task started", "works", "careful", "Task completed", "Task failed")
    }
    assert said_of == {
        "Task started": chosen, "works": chosen, "careful": set(range(1, 201)), "Task completed": chosen - tens,
        "Task failed": tens,
    }  # fmt: skip
    assert len([line for line in lines(stream) if line["task_kind"] == "all"]) == 20


async def test_a_snoozed_job_is_announced_as_such(begin: Begin, room: Room) -> None:
    async def handler(args: Args, job: Job) -> None:
        raise Snooze(3)

    stream = listen(begin, room, tasks="all")
    room.kind("k", handler)
    room.start().add([row(1)])
    await room.outcomes(1)
    assert [line["message"] for line in lines(stream, "wqcore.task")] == ["Task started", "Task snoozed"]
    assert lines(stream, "wqcore.task")[1]["retry_in_s"] == 3


async def test_lines_are_kept_with_the_outcome_of_their_run(begin: Begin, room: Room) -> None:
    async def handler(args: Args, job: Job) -> None:
        for n in range(job.id):
            shop.info("line %d", n)
        shop.debug("too fine")
        if args.n:
            raise ValueError

    def thread(args: Args, job: Job) -> None:
        shop.info("in its thread")

    async def batch(items: list[BatchItem[Args]]) -> None:
        shop.info("for both")

    listen(begin, room, keep_lines=2, kinds={"off": KindLogging(keep_lines=0)})
    room.kind("k", handler)
    room.kind("off", handler)
    room.kind("t", ThreadHandler(thread, with_job=True))
    room.kind("b", BatchHandler(batch, 2, 30.0))
    wrong = b'{"n": 1}'
    executor = room.start(4)
    executor.add([row(1), row(2, args=wrong), row(5, args=wrong, max_attempts=1), row(7, "off", args=wrong)])
    executor.add([row(11, "t"), row(21, "b"), row(22, "b"), row(0)])
    outcomes = await room.outcomes(8)
    kept = {item.id: json.loads(item.log or "[]") for item in outcomes.ended if item.outcome == "completed"}
    kept |= {item.id: json.loads(item.error or "{}").get("log", []) for item in outcomes.again}
    kept |= {item.id: json.loads(item.error or "{}").get("log", []) for item in outcomes.ended if item.error}
    found = {job_id: [line["message"] for line in log] for job_id, log in kept.items()}
    assert found == {
        1: ["line 0"],
        2: ["line 0", "line 1"],
        5: ["3 earlier lines were not kept (logging.keep_lines, logging.keep_bytes_max)", "line 3", "line 4"],
        7: [],
        11: ["in its thread"],
        21: ["for both"],
        22: ["for both"],
    }
    assert outcomes.done_ids == [0], "a job that said nothing goes the short way"
    assert set(kept[1][0]) == {"at", "level", "logger", "message"}


def record(message: Any, *args: Any, exc: BaseException | None = None) -> logging.LogRecord:
    shown = None if exc is None else (type(exc), exc, exc.__traceback__)
    return logging.LogRecord("shop", logging.INFO, __file__, 1, message, args, shown)


def test_what_is_kept_of_a_run_is_bounded_in_bytes() -> None:
    kept = Kept(10_000, 2_000)
    for n in range(500):
        kept.add(record("é" * n))
        texts = sum(len(line["message"].encode()) for line in kept.lines()[-100:])
        assert texts <= 2_000 + LINE_BYTES
    kept.add(record("x" * 1_000_000))
    dropped, last = kept.lines()
    assert last["message"] == "x" * (2_000 - LINE_BYTES)
    assert dropped["message"].startswith("500 earlier lines")


def test_what_is_kept_can_be_stored_whatever_it_is() -> None:
    class UnreadableError(Exception):
        def __str__(self) -> str:
            raise ValueError

    kept = Kept(10, 100_000)
    try:
        raise UnreadableError
    except UnreadableError as error:
        kept.add(record("a\x00b\ud800c", exc=error))
    [first] = json.loads(kept.json())
    assert first["message"] == "a\ufffdb\ufffdc"
    assert first["exception"].splitlines()[0].startswith(__file__)
    assert first["exception"].splitlines()[-1].startswith("test_what_is_kept_can_be_stored")


@pytest.mark.parametrize("tasks", ["all", "failures"])
def test_a_kind_costs_its_jobs_nothing_unless_something_is_asked_of_its_lines(tasks: Any) -> None:
    assert Voice(Logging(tasks=tasks)).asks() == (tasks == "all")
    assert not Voice(Logging(tasks=tasks, level="warning")).asks()
    assert Voice(Logging(keep_lines=1)).asks()
    assert Voice(Logging(sample=0.5)).asks()
    assert not Voice(Logging(tasks=tasks, sample=0.0)).announces(7)


async def test_a_line_that_cannot_be_made_a_text_costs_nobody_his_job(begin: Begin, room: Room) -> None:
    async def handler(args: Args, job: Job) -> None:
        shop.info("%d apples", "no number")
        shop.info("fine")

    listen(begin, room, keep_lines=5)
    room.kind("k", handler)
    room.start().add([row(1)])
    [ended] = (await room.outcomes(1)).ended
    assert [line["message"] for line in json.loads(ended.log or "[]")] == ["fine"]


async def test_an_error_that_nobody_retrieved_is_not_told_of_the_job_in_which_it_is_collected(
    begin: Begin, room: Room
) -> None:
    left: list[asyncio.Task[None]] = []

    async def fail() -> None:
        raise ValueError("s3cret")

    async def handler(args: Args, job: Job) -> None:
        if job.id == 1:
            left.append(asyncio.create_task(fail()))
            await asyncio.wait(left)
        else:
            left.clear()
            gc.collect()

    stream = listen(begin, room, keep_lines=5)
    room.kind("k", handler)
    room.start(1).add([row(1), row(2)])
    outcomes = await room.outcomes(2)
    [line] = lines(stream, "asyncio")
    assert "never retrieved" in line["message"]
    assert "job_id" not in line
    assert outcomes.done_ids == [1, 2], "nor is it kept with it"


def test_threads_of_their_own_log_without_a_job(begin: Begin) -> None:
    stream = begin(Logging(format="json"))
    thread = threading.Thread(target=shop.info, args=("alone",))
    thread.start()
    thread.join()
    assert about(lines(stream)[0]) == ("alone", None, None, None, None)
