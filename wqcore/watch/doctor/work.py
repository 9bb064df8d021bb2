"""The work: masters, queues, kinds, recurring jobs."""

from __future__ import annotations

from collections.abc import Iterator

from wqcore.watch.doctor.facts import Facts
from wqcore.watch.doctor.finding import Level, age, check

OVERDUE_S = 60.0


@check("masters", "processes")
def _masters(facts: Facts) -> Iterator[tuple[Level, str, str | None]]:
    masters, dead_after_s = facts.rows["processes"], facts.settings.process.dead_after_s
    for row in masters:
        if row["beat_age_s"] > dead_after_s:
            text = f"master {row['pid']} on {row['host']} has been silent for {age(row['beat_age_s'])}"
            yield "problem", text, "any master that runs rescues its jobs; look at that host"
    versions = sorted({row["version"] for row in masters})
    if len(versions) > 1:
        yield "remark", f"masters of versions {', '.join(versions)} run side by side", "finish the deploy"
    elif masters and all(row["beat_age_s"] <= dead_after_s for row in masters):
        yield "ok", f"{len(masters)} of version {versions[0]}", None
    elif not masters:
        yield "remark", "no master runs", "wqcore run, or look at the Deployment"


@check("queues", "status")
def _queues(facts: Facts) -> Iterator[tuple[Level, str, str | None]]:
    right = True
    for row in facts.rows["status"]:
        name, waiting = row["name"], row["ready"] + row["due"]
        if waiting and not row["shards"]:
            right = False
            text = f"queue {name!r} has {waiting:,} jobs that wait and no worker"
            known = name in facts.settings.queues
            yield (
                "problem",
                text,
                f"run a master of group {facts.settings.group_of(name)!r}" if known else f"[queues.{name}]",
            )
        if row["paused"]:
            right = False
            yield "remark", f"queue {name!r} is paused", f"wqcore queues resume {name!r}"
    if right:
        yield "ok", f"{len(facts.rows['status'])}, none without a worker that has work", None


@check("kinds", "kinds")
def _kinds(facts: Facts) -> Iterator[tuple[Level, str, str | None]]:
    if not facts.kinds:
        yield "unknown", "process.handlers names no module that declares kinds", None
        return
    unknown = [f"{row['kind']} ({row['jobs']})" for row in facts.rows["kinds"] if row["kind"] not in facts.kinds]
    if unknown:
        text = f"waiting jobs of kinds that this program does not know: {', '.join(unknown)}"
        fix = "add their module to process.handlers, or declare the new name with aliases; else they are discarded in the end"
        yield "problem", text, fix
    else:
        yield "ok", f"{len(facts.kinds)} known, none of another among the first waiting jobs", None


@check("schedules", "schedules")
def _schedules(facts: Facts) -> Iterator[tuple[Level, str, str | None]]:
    right = True
    for row in facts.rows["schedules"]:
        if row["failed"]:
            right = False
            yield "problem", f"the last tick of schedule {row['name']!r} failed", "wqcore schedules shows its error"
        elif row["overdue_s"] is not None and row["overdue_s"] > OVERDUE_S:
            right = False
            text = f"schedule {row['name']!r} is {age(row['overdue_s'])} late"
            yield "problem", text, "a master must run whose code or configuration declares it"
    if right:
        yield "ok", f"{len(facts.rows['schedules'])} not paused, none failed or late", None
