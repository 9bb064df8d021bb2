"""`current_job()` is the job of the calling handler, or None; never the job of another run."""

from __future__ import annotations

import asyncio
import contextvars
import threading

import wqcore
from tests.fix_room import Args, Room, row
from wqcore.job import Job


def current_id() -> int | None:
    job = wqcore.current_job()
    return None if job is None else job.id


async def ask() -> int | None:
    await asyncio.sleep(0)
    return current_id()


async def test_a_handler_its_tasks_and_its_threads_know_their_job(room: Room) -> None:
    seen: list[tuple[int, int | None]] = []

    async def inner(expected: int) -> None:
        await asyncio.sleep(0)
        seen.append((expected, current_id()))
        await asyncio.gather(deeper(expected), deeper(expected))

    async def deeper(expected: int) -> None:
        await asyncio.sleep(0)
        seen.append((expected, await asyncio.to_thread(current_id)))

    async def handler(args: Args, job: Job) -> None:
        assert wqcore.current_job() is job
        async with asyncio.TaskGroup() as group:
            group.create_task(inner(job.id))
        seen.append((job.id, await asyncio.to_thread(current_id)))
        seen.append((job.id, await asyncio.get_running_loop().run_in_executor(None, current_id)))
        assert wqcore.current_job() is job

    room.kind("k", handler)
    room.start(3).add([row(n) for n in range(1, 10)])
    assert len((await room.outcomes(9)).done_ids) == 9
    assert len(seen) == 45
    assert all(expected == found for expected, found in seen)


async def test_outside_of_handlers_there_is_none(room: Room) -> None:
    room.start()
    assert wqcore.current_job() is None
    assert await asyncio.to_thread(wqcore.current_job) is None
    assert await asyncio.create_task(ask()) is None


async def test_a_task_that_outlives_its_job_does_not_see_the_next_one(room: Room) -> None:
    seen: list[int | None] = []
    more, done = asyncio.Event(), asyncio.Event()
    left: list[asyncio.Task[None]] = []

    async def outlives() -> None:
        seen.append(current_id())
        await more.wait()
        seen.append(current_id())
        # what it starts now belongs to no job either
        seen.append(await asyncio.create_task(ask()))
        seen.append(await asyncio.to_thread(current_id))
        done.set()

    async def handler(args: Args, job: Job) -> None:
        if job.id == 1:
            left.append(asyncio.create_task(outlives()))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        else:
            more.set()
            await done.wait()

    room.kind("k", handler)
    executor = room.start(1)  # so that both jobs run on one seat
    executor.add([row(1), row(2)])
    assert (await room.outcomes(2)).done_ids == [1, 2]
    assert seen == [1, None, None, None]


async def test_a_thread_that_outlives_its_job_does_not_see_the_next_one(room: Room) -> None:
    seen: list[int | None] = []
    more, done = threading.Event(), threading.Event()

    def outlives() -> None:
        assert more.wait(20)
        seen.append(current_id())
        done.set()

    async def handler(args: Args, job: Job) -> None:
        if job.id == 1:
            asyncio.get_running_loop().run_in_executor(None, outlives)
            asyncio.get_running_loop().run_in_executor(None, contextvars.copy_context().run, outlives)
        else:
            more.set()
            await asyncio.to_thread(done.wait, 20)

    room.kind("k", handler)
    room.start(1).add([row(1), row(2)])
    assert (await room.outcomes(2)).done_ids == [1, 2]
    await room.until(lambda: len(seen) == 2)
    assert seen == [None, None]
