"""A schedule ticks as long as it is active: each tick makes one event and enqueues the next, in one transaction.

Protocol: `next_tick` of a schedule is the one tick that may be delivered. `events.deliverScheduled` for another one (its
schedule was changed, or it runs again after its commit) does nothing. The next tick is the first that lies ahead of the
clock: what a long outage has missed is not made up for. Intervals count from the tick before, cron is read in UTC.

A crash before the commit leaves the tick to the next attempt. A tick whose job is discarded, cancelled or deleted is
enqueued again by `sweepSchedules`, so a schedule never dies with one failed job.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec
from cronsim import CronSim

import wqcore
from handlers import declared, ids, registration, store
from handlers.events import InvokeDispatcher
from handlers.ingest import Event, ingest
from handlers.protocol import Instant

"""A point in time; on the wire ISO 8601 with a zone."""
SCHEDULED_EVENT = "dev.trigger.scheduled"
SWEEP_EVERY_S = 30.0


class Tick(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """One tick of a schedule.

    Attributes:
        ts (datetime with time zone): when it was due.
        last_timestamp (datetime with time zone | None): the tick before; None for the first.
    """

    ts: Instant
    last_timestamp: Instant | None = None


@wqcore.kind("events.deliverScheduled", queue="default", max_attempts=5, timeout_s=60)
class DeliverScheduled(msgspec.Struct, frozen=True, rename="camel"):
    """Delivers one tick of a schedule.

    Its call sites add what the args do not hold: serial key `scheduler-<environmentId>`, job key `scheduled:<id>`.

    Attributes:
        id (str): the schedule source.
        payload (Tick): the tick.
    """

    id: str
    payload: Tick


@wqcore.kind("registerDynamicSchedule", queue="default", max_attempts=3, timeout_s=60)
class RegisterDynamicSchedule(msgspec.Struct, frozen=True, rename="camel"):
    """Stores a dynamic schedule and connects its jobs.

    Attributes:
        endpoint_id (str): the endpoint that declares it.
        dynamic_schedule (dict): its metadata, as the endpoint sent it.
    """

    endpoint_id: str
    dynamic_schedule: dict[str, Any]


@wqcore.kind("sweepSchedules", queue="default", max_attempts=1, timeout_s=60)
class SweepSchedules(msgspec.Struct, frozen=True):
    """Enqueues ticks that are over and have no job. No kind of the catalog: the platform's own housekeeping."""


wqcore.recurring(
    "sweepSchedules", SweepSchedules(), every_s=SWEEP_EVERY_S, job_key="sweepSchedules", job_key_mode="unsafe_dedupe"
)


class Registration(declared.Declared, frozen=True):
    """What user code registers on a dynamic schedule, beside its times.

    Attributes:
        id (str): its key, unique within the dynamic schedule.
    """

    id: declared.Key


@wqcore.handler
async def deliver_scheduled(args: DeliverScheduled, job: wqcore.Job) -> None:
    """Makes the event of the tick, invokes the schedule's dispatcher with it, and enqueues the next tick."""
    db = await store.open_store()
    async with db.transaction() as tx:
        schedule = await tx.row("lock_schedule", id=args.id)
        if schedule is None or not schedule.active or schedule.next_tick != args.payload.ts:
            return
        [record] = await ingest(tx, schedule.environment_id, [_event(schedule, args.payload)], deliver=False)
        await tx.enqueue(InvokeDispatcher(schedule.dispatcher_id, record.id))
        await _go_on(tx, schedule, after=args.payload.ts, last=args.payload.ts)


@wqcore.handler
async def register_dynamic_schedule(args: RegisterDynamicSchedule, job: wqcore.Job) -> None:
    """Stores the dynamic schedule with exactly the jobs that it names."""
    metadata = declared.read(args.dynamic_schedule, declared.DynamicScheduleMetadata, "dynamicSchedule")
    db = await store.open_store()
    async with db.transaction() as tx:
        endpoint = await registration.endpoint_declaring(tx, args.endpoint_id)
        await registration.dynamic_trigger(tx, endpoint, "SCHEDULE", metadata)


@wqcore.handler
async def sweep_schedules(args: SweepSchedules, job: wqcore.Job) -> None:
    """Enqueues the ticks that no job stands for; the output says how many."""
    db = await store.open_store()
    row = await db.row("revive_schedules")
    job.output({"revived": 0 if row is None else row.revived})


async def schedule_job(tx: store.Transaction, environment_id: str, job_id: str, schedule: declared.Schedule) -> None:
    """Has the schedule start the job, by a dispatcher that nothing else invokes."""
    rule = declared.EventRule(SCHEDULED_EVENT)
    dispatcher = await registration.dispatcher(tx, environment_id, job_id, "JOB_VERSION", job_id, rule, manual=True)
    await _put(tx, environment_id, ids.new("sch"), job_id, dispatcher, schedule)


async def register(
    tx: store.Transaction, environment_id: str, client: str, trigger_slug: str, body: Any
) -> dict[str, Any] | None:
    """POST /api/v1/:client/schedules/:id/registrations: a schedule that user code adds to a dynamic schedule.

    Args:
        client, trigger_slug: the slugs of the endpoint and of the dynamic schedule.
        body: decoded JSON, `{id, type, options, metadata?, accountId?}`.

    Returns the reply, or None when the environment has no such dynamic schedule. Raises msgspec.ValidationError, which
    names the field.
    """
    key, schedule = msgspec.convert(body, Registration).id, msgspec.convert(body, declared.Schedule)
    trigger = await _trigger(tx, environment_id, client, trigger_slug)
    if trigger is None:
        return None
    own_key = _key(trigger, key)
    # between this look and the insert nobody else makes it: the trigger is locked
    found = await tx.row("schedule_of_key", environment=environment_id, key=own_key)
    schedule_id = ids.new("sch") if found is None else found.id
    dispatcher = await registration.dispatcher(
        tx, environment_id, schedule_id, "DYNAMIC_TRIGGER", trigger.id, declared.EventRule(SCHEDULED_EVENT), manual=True
    )
    await _put(tx, environment_id, schedule_id, own_key, dispatcher, schedule, dynamic_trigger=trigger.id)
    told = {"type": body["type"], "options": msgspec.to_builtins(schedule.options)}
    return {"id": key, "schedule": told, "metadata": schedule.metadata, "active": True}


async def unregister(tx: store.Transaction, environment_id: str, client: str, trigger_slug: str, key: str) -> bool:
    """DELETE /api/v1/:client/schedules/:id/registrations/:key: its ticks end. False when there never was such a one."""
    trigger = await _trigger(tx, environment_id, client, trigger_slug)
    if trigger is None:
        return False
    return await tx.row("unregister_schedule", environment=environment_id, key=_key(trigger, key)) is not None


def next_tick(cron: str | None, seconds: int | None, after: dt.datetime, now: dt.datetime) -> dt.datetime | None:
    """The first tick later than both `after` and `now`; None when there is none within 50 years.

    An interval's ticks are whole intervals from `after`. The result is in UTC, whatever zone the database's times came in.
    """
    after, now = after.astimezone(dt.UTC), now.astimezone(dt.UTC)
    if cron is not None:
        return next(iter(CronSim(cron, max(after, now))), None)
    step = dt.timedelta(seconds=seconds or 1)
    return after + step * (max((now - after) // step, 0) + 1)


async def _put(
    tx: store.Transaction,
    environment_id: str,
    schedule_id: str,
    key: str,
    dispatcher: str,
    schedule: declared.Schedule,
    *,
    dynamic_trigger: str | None = None,
) -> None:
    row = await tx.row(
        "register_schedule",
        id=schedule_id,
        environment=environment_id,
        key=key,
        dispatcher=dispatcher,
        dynamic_trigger=dynamic_trigger,
        metadata=store.json(schedule.metadata),
        account=schedule.account_id,
        **schedule.times,
    )
    if row is not None and row.next_tick is None:
        await _go_on(tx, row, after=row.last_tick or _whole_ms(row.now), last=row.last_tick)


async def _go_on(tx: store.Transaction, schedule: store.Row, *, after: dt.datetime, last: dt.datetime | None) -> None:
    """Sets the schedule's next tick and enqueues it, in the place of a job for another tick that still waits."""
    tick = next_tick(schedule.cron, schedule.seconds, after, schedule.now)
    await tx.rows("advance_schedule", id=schedule.id, last_tick=last, next_tick=tick)
    if tick is not None:
        await tx.enqueue(
            DeliverScheduled(schedule.id, Tick(tick, last and last.astimezone(dt.UTC))),
            run_at=tick,
            serial_key=f"scheduler-{schedule.environment_id}",
            job_key=f"scheduled:{schedule.id}",
        )


def _event(schedule: store.Row, tick: Tick) -> Event:
    key = schedule.key
    if schedule.dynamic_trigger_id is not None:
        key = key.removeprefix(f"{schedule.dynamic_trigger_id}:")
    return Event(
        id=f"{schedule.id}:{int(tick.ts.timestamp() * 1000)}",
        name=SCHEDULED_EVENT,
        payload=msgspec.to_builtins(tick),
        source_context={"id": key, "metadata": schedule.metadata},
        account_id=schedule.account_id,
    )


def _whole_ms(moment: dt.datetime) -> dt.datetime:
    # JavaScript's dates hold milliseconds: so that user code sees the tick that the event's id names
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def _key(trigger: store.Row, key: str) -> str:
    return f"{trigger.id}:{key}"


async def _trigger(tx: store.Transaction, environment_id: str, client: str, slug: str) -> store.Row | None:
    return await tx.row("lock_dynamic_trigger", environment=environment_id, client=client, slug=slug, type="SCHEDULE")
