"""Judges a simulated campaign by its end: every job is there once, and its record is that of its newest run.

What can only be seen while it happens, runs that overlap, the campaign itself has noted in `broken`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.model.tables import Record

if TYPE_CHECKING:
    from tests.model.simulation import World


def judge(world: World) -> list[str]:
    """The rules that this campaign has broken."""
    tables, broken = world.database.tables, list(world.broken)
    ended = [record.row.id for record in tables.history]
    broken += [f"job {job} has {ended.count(job)} terminal records" for job in set(ended) if ended.count(job) > 1]
    missing = world.inserted - world.deleted - set(ended) - set(tables.jobs)
    broken += [f"job {job} is lost" for job in missing]
    broken += [f"job {job} was never inserted" for job in set(ended) - world.inserted]
    for record in tables.history:
        broken += _attempts(world, record)
        if record.outcome == "completed":
            broken += _completed(world, record)
    if tables.shards or tables.claims or any(tables.slots.values()):
        broken.append(f"left behind: {tables.shards}, {tables.claims}, {tables.slots}")
    return broken


def _attempts(world: World, record: Record) -> list[str]:
    """Whether attempts and deaths add up."""
    job, broken = record.row.id, []
    runs = sum(run.job == job for run in world.runs)
    if record.attempt > runs:
        broken.append(f"job {job} has {record.attempt} attempts, but only {runs} runs")
    if record.deaths > world.rescues:
        broken.append(f"job {job} has {record.deaths} deaths, but there were only {world.rescues} rescues")
    if record.outcome == "completed" and job not in world.put_back and record.attempt != len(record.errors) + 1:
        broken.append(f"job {job} has {record.attempt} attempts and {len(record.errors)} errors")
    return broken


def _completed(world: World, record: Record) -> list[str]:
    """Whether it was the newest run that completed the job, and what was inserted last that ran."""
    job, broken = record.row.id, []
    good = [run for run in world.well if (run.job, run.worker.id) == (job, record.shard)]
    if not good:
        broken.append(f"job {job} is completed, but no handler of worker {record.shard} ended well")
    elif good[-1].revision != record.row.revision:
        broken.append(f"job {job} is completed at revision {record.row.revision}, which never ran")
    newest = [run for run in world.runs if run.job == job and run.leased][-1]
    if newest.worker.id != record.shard:
        broken.append(f"job {job} was completed by worker {record.shard}, its newest run was of {newest.worker.id}")
    return broken
