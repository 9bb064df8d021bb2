"""A schedule's tick makes one event, one invocation and the next tick, and a schedule outlives its jobs."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import Any

import msgspec
import pytest

from handlers import schedules
from handlers.endpoints import RegisterJob, register_job
from handlers.schedules import (
    DeliverScheduled,
    RegisterDynamicSchedule,
    SweepSchedules,
    Tick,
    deliver_scheduled,
    next_tick,
    register_dynamic_schedule,
    sweep_schedules,
)
from tests.fix_job import make_job
from tests.fix_pg import empty_dsn, pg
from tests.fix_platform import Platform, platform

__all__ = ["empty_dsn", "pg", "platform"]

JOB: dict[str, Any] = {
    "id": "report", "name": "Report", "version": "1", "event": {"name": "dev.trigger.scheduled"}, "enabled": True,
}  # fmt: skip
HOUR = dt.timedelta(hours=1)


def at(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


async def schedule_job(platform: Platform, **schedule: Any) -> str:
    """A job with this schedule; the id of the schedule."""
    known = platform.sql("select id from {s}.endpoint")
    endpoint = known[0][0] if known else platform.add_endpoint("http://a.example")
    schedule = schedule or {"type": "interval", "options": {"seconds": 3600}}
    await register_job(
        RegisterJob(endpoint, JOB | {"trigger": {"type": "scheduled", "schedule": schedule}}), make_job()
    )
    return str(platform.one("select id from {s}.schedule_source"))


def make_due(platform: Platform, ago: dt.timedelta = dt.timedelta(seconds=1)) -> dt.datetime:
    """Moves the schedule's next tick and its job into the past; the tick."""
    tick: dt.datetime = platform.one(
        "update {s}.schedule_source set next_tick = date_trunc('second', now() - %s) returning next_tick", ago
    )
    platform.sql(
        "update {wq}.job set run_at = %s, args = jsonb_set(args::jsonb, '{{payload,ts}}', to_jsonb(%s::text))::json"
        " where kind = 'events.deliverScheduled'",
        tick, tick.isoformat(),
    )  # fmt: skip
    return tick


def ticks(platform: Platform) -> list[tuple[Any, ...]]:
    """The unfinished jobs for ticks."""
    return platform.sql(
        "select args #>> '{{payload,ts}}', run_at, job_key, serial_key from {wq}.jobs"
        " where kind = 'events.deliverScheduled' and state not in ('completed', 'discarded', 'cancelled') order by id"
    )


@pytest.mark.parametrize(
    ("times", "after", "now", "tick"),
    [
        ({"seconds": 60}, "2026-01-01T10:00:00", "2026-01-01T10:00:01", "2026-01-01T10:01:00"),
        ({"seconds": 60}, "2026-01-01T10:00:00", "2026-01-01T10:01:00", "2026-01-01T10:02:00"),
        ({"seconds": 60}, "2026-01-01T10:00:30", "2026-01-01T15:00:00", "2026-01-01T15:00:30"),
        ({"seconds": 60}, "2026-01-01T10:00:00", "2026-01-01T09:00:00", "2026-01-01T10:01:00"),
        ({"cron": "0 9 * * *"}, "2026-01-01T09:00:00", "2026-01-01T09:00:02", "2026-01-02T09:00:00"),
        ({"cron": "0 9 * * *"}, "2026-01-01T09:00:00", "2026-01-01T08:59:59", "2026-01-02T09:00:00"),
        ({"cron": "0 9 * * *"}, "2026-01-01T09:00:00", "2026-01-09T12:00:00", "2026-01-10T09:00:00"),
        ({"cron": "*/10 * * * * *"}, "2026-01-01T09:00:00", "2026-01-01T09:00:02", "2026-01-01T09:00:10"),
    ],
)
def test_the_next_tick_is_the_first_that_lies_ahead(times: dict[str, Any], after: str, now: str, tick: str) -> None:
    assert next_tick(times.get("cron"), times.get("seconds"), at(after), at(now)) == at(tick)


def test_cron_is_read_in_utc_whatever_zone_the_times_are_in() -> None:
    tokyo = dt.timezone(dt.timedelta(hours=9))
    moment = at("2026-01-01T10:00:00").astimezone(tokyo)
    tick = next_tick("0 9 * * *", None, moment, moment)
    assert tick == at("2026-01-02T09:00:00")
    assert tick is not None
    assert tick.utcoffset() == dt.timedelta()


async def test_a_tick_makes_one_event_one_invocation_and_the_next_tick_also_when_it_is_delivered_twice(
    platform: Platform,
) -> None:
    schedule = await schedule_job(platform)
    tick = make_due(platform)
    args = DeliverScheduled(schedule, Tick(tick, tick - HOUR))
    await deliver_scheduled(args, make_job())
    await deliver_scheduled(args, make_job(attempt=2))
    job_id, dispatcher = platform.sql("select key, id from {s}.event_dispatcher")[0]
    payload = {"ts": tick.strftime("%Y-%m-%dT%H:%M:%SZ"), "lastTimestamp": (tick - HOUR).strftime("%Y-%m-%dT%H:%M:%SZ")}
    assert platform.sql("select event_id, name, source, payload, source_context from {s}.event_record") == [
        (f"{schedule}:{int(tick.timestamp()) * 1000}", "dev.trigger.scheduled", "trigger.dev", payload,
         {"id": job_id, "metadata": None}),
    ]  # fmt: skip
    assert platform.jobs("deliverEvent") == []
    record = platform.one("select id from {s}.event_record")
    assert platform.jobs("events.invokeDispatcher") == [{"id": dispatcher, "eventRecordId": record}]
    assert platform.sql("select last_tick, next_tick from {s}.schedule_source") == [(tick, tick + HOUR)]
    assert [row[1:] for row in ticks(platform)] == [
        (tick + HOUR, f"scheduled:{schedule}", f"scheduler-{platform.environment}")
    ]


async def test_ticks_that_a_worker_delivers_follow_one_another(platform: Platform) -> None:
    await schedule_job(platform)
    for seconds in (3, 2, 1):
        make_due(platform, dt.timedelta(seconds=seconds))
        await platform.drain()
    assert platform.one("select count(*) from {s}.event_record where payload ? 'lastTimestamp'") == 2
    assert len(platform.jobs("events.invokeDispatcher")) == 3
    assert len(ticks(platform)) == 1


async def test_a_long_outage_is_not_made_up_for(platform: Platform) -> None:
    schedule = await schedule_job(platform)
    tick = make_due(platform, dt.timedelta(hours=5, minutes=30))
    await deliver_scheduled(DeliverScheduled(schedule, Tick(tick)), make_job())
    assert platform.one("select next_tick from {s}.schedule_source") == tick + 6 * HOUR


async def test_many_workers_with_one_tick_make_one_event(platform: Platform) -> None:
    schedule = await schedule_job(platform)
    tick = make_due(platform)
    await asyncio.gather(*(deliver_scheduled(DeliverScheduled(schedule, Tick(tick)), make_job()) for _ in range(8)))
    assert len(platform.jobs("events.invokeDispatcher")) == 1
    assert len(ticks(platform)) == 1


async def test_a_schedule_that_is_inactive_gone_or_at_another_tick_does_nothing(platform: Platform) -> None:
    schedule = await schedule_job(platform)
    tick = make_due(platform)
    await deliver_scheduled(DeliverScheduled("sch_gone", Tick(tick)), make_job())
    await deliver_scheduled(DeliverScheduled(schedule, Tick(tick - HOUR)), make_job())
    platform.sql("update {s}.schedule_source set active = false")
    await deliver_scheduled(DeliverScheduled(schedule, Tick(tick)), make_job())
    assert platform.one("select count(*) from {s}.event_record") == 0
    assert platform.one("select next_tick from {s}.schedule_source") == tick


async def test_a_schedule_that_is_registered_again_keeps_its_tick_and_a_changed_one_replaces_it(
    platform: Platform,
) -> None:
    await schedule_job(platform)
    [before] = ticks(platform)
    await schedule_job(platform)
    assert ticks(platform) == [before]
    await schedule_job(platform, type="interval", options={"seconds": 60})
    [after] = ticks(platform)
    assert after[1] < before[1]
    await schedule_job(platform, type="cron", options={"cron": "0 0 1 1 *"})
    [yearly] = ticks(platform)
    assert yearly[1] == platform.one("select next_tick from {s}.schedule_source")
    assert (yearly[1].month, yearly[1].day, yearly[1].hour) == (1, 1, 0)


async def test_the_sweep_revives_a_schedule_whose_job_was_discarded(platform: Platform) -> None:
    schedule = await schedule_job(platform)
    platform.sql("update {s}.schedule_source set last_tick = next_tick - interval '1 hour'")
    tick = make_due(platform)
    [job_id] = [job_id for (job_id,) in platform.sql("select id from {wq}.job")]
    await platform.client.cancel(job_id)
    assert ticks(platform) == []
    await platform.client.insert(SweepSchedules())
    await platform.drain()
    assert platform.one("select output from {wq}.jobs where kind = 'sweepSchedules'") == {"revived": 1}
    assert len(platform.jobs("events.invokeDispatcher")) == 1
    assert platform.one("select payload ? 'lastTimestamp' from {s}.event_record")
    assert [row[1:] for row in ticks(platform)] == [
        (tick + HOUR, f"scheduled:{schedule}", f"scheduler-{platform.environment}")
    ]


async def test_the_sweep_leaves_schedules_alone_that_have_a_job_wait_for_their_tick_or_are_off(
    platform: Platform,
) -> None:
    await schedule_job(platform)
    make_due(platform)
    await sweep(platform)
    assert len(ticks(platform)) == 1  # it has a job
    platform.sql("delete from {wq}.job")
    platform.sql("update {s}.schedule_source set next_tick = now() + interval '1 hour'")
    await sweep(platform)
    platform.sql("update {s}.schedule_source set next_tick = now() - interval '1 hour', active = false")
    await sweep(platform)
    assert ticks(platform) == []


async def test_the_sweep_leaves_a_tick_alone_that_is_being_delivered(platform: Platform) -> None:
    schedule = await schedule_job(platform)
    make_due(platform)
    platform.sql("delete from {wq}.job")
    async with platform.store.transaction() as tx:
        await tx.row("lock_schedule", id=schedule)
        await sweep(platform)
    assert ticks(platform) == []
    await sweep(platform)
    assert len(ticks(platform)) == 1


async def sweep(platform: Platform) -> None:
    await sweep_schedules(SweepSchedules(), make_job())


async def declare_dynamic(platform: Platform) -> None:
    endpoint = platform.add_endpoint("http://a.example")
    metadata = {"id": "per-user", "jobs": [{"id": "report", "version": "1"}]}
    await register_dynamic_schedule(RegisterDynamicSchedule(endpoint, metadata), make_job())


async def add(platform: Platform, client: str = "shop", slug: str = "per-user", **body: Any) -> dict[str, Any] | None:
    async with platform.store.transaction() as tx:
        return await schedules.register(tx, platform.environment, client, slug, body)


async def remove(platform: Platform, key: str) -> bool:
    async with platform.store.transaction() as tx:
        return await schedules.unregister(tx, platform.environment, "shop", "per-user", key)


async def test_user_code_registers_a_schedule_on_a_dynamic_schedule(platform: Platform) -> None:
    await declare_dynamic(platform)
    body = {"id": "user:1", "type": "interval", "options": {"seconds": 60}, "metadata": {"n": 1}, "accountId": "ada"}
    assert await add(platform, **body) == {
        "id": "user:1",
        "schedule": {"type": "interval", "options": {"seconds": 60}},
        "metadata": {"n": 1},
        "active": True,
    }
    await asyncio.gather(*(add(platform, **body) for _ in range(5)))
    trigger = platform.one("select id from {s}.dynamic_trigger")
    [(schedule, key)] = platform.sql("select id, key from {s}.schedule_source")
    assert key == f"{trigger}:user:1"
    assert platform.sql("select key, kind, target_id, manual, enabled from {s}.event_dispatcher") == [
        (schedule, "DYNAMIC_TRIGGER", trigger, True, True)
    ]
    assert len(ticks(platform)) == 1
    tick = make_due(platform)
    await deliver_scheduled(DeliverScheduled(schedule, Tick(tick)), make_job())
    assert platform.sql("select source_context, account_id from {s}.event_record") == [
        ({"id": "user:1", "metadata": {"n": 1}}, "ada")
    ]


async def test_a_registration_that_is_new_at_many_requests_is_made_once(platform: Platform) -> None:
    await declare_dynamic(platform)
    await asyncio.gather(*(add(platform, id="u", type="cron", options={"cron": "* * * * *"}) for _ in range(8)))
    assert platform.one("select count(*) from {s}.schedule_source") == 1
    assert platform.one("select count(*) from {s}.event_dispatcher") == 1


async def test_a_schedule_that_user_code_removes_ticks_no_more_until_it_is_registered_again(platform: Platform) -> None:
    await declare_dynamic(platform)
    body = {"id": "u", "type": "interval", "options": {"seconds": 60}}
    await add(platform, **body)
    schedule, tick = platform.sql("select id, next_tick from {s}.schedule_source")[0]
    assert (await remove(platform, "u"), await remove(platform, "u"), await remove(platform, "v")) == (
        True,
        True,
        False,
    )
    await deliver_scheduled(DeliverScheduled(schedule, Tick(tick)), make_job())
    assert platform.one("select count(*) from {s}.event_record") == 0
    await add(platform, **body)
    assert platform.one("select active and next_tick > now() from {s}.schedule_source")
    assert len(ticks(platform)) == 1


async def test_a_schedule_on_an_unknown_endpoint_or_dynamic_schedule_is_not_found(platform: Platform) -> None:
    await declare_dynamic(platform)
    body = {"id": "u", "type": "interval", "options": {"seconds": 60}}
    assert await add(platform, "other", **body) is None
    assert await add(platform, "shop", "other", **body) is None


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"type": "interval", "options": {"seconds": 60}}, "`id`"),
        ({"id": "u", "type": "interval", "options": {"seconds": 0}}, r"`\$\.options\.seconds`"),
        ({"id": "u", "type": "cron", "options": {"cron": "* * *"}}, r"`\$\.options`"),
        ({"id": "u", "type": "daily"}, "daily"),
    ],
)
async def test_a_schedule_that_does_not_fit_names_the_field(platform: Platform, body: Any, field: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=field):
        await add(platform, **body)
