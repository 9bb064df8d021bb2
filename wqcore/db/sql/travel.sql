-- Makes everything that has happened, and everything that is to happen, older by so many seconds.
-- Promises: masters and shards keep their times, so nobody is taken for dead; the row of a job keeps its revision.
-- Locks: rows of job and history, all of them. For tests. Repeatable: no, it moves again.
with step as materialized (select %(seconds)s::float8 * interval '1 second' as by),
jobs as (
    update {schema}.job set run_at = run_at - step.by, created_at = created_at - step.by from step
),
ended as (
    update {schema}.history
       set created_at = created_at - step.by, attempted_at = attempted_at - step.by,
           finished_at = finished_at - step.by, expires_at = expires_at - step.by
      from step
),
schedules as (
    update {schema}.schedule
       set last_tick = last_tick - step.by, next_tick = next_tick - step.by, created_at = created_at - step.by,
           updated_at = updated_at - step.by
      from step
),
requests as (
    update {schema}.cancel_request set asked_at = asked_at - step.by from step
),
said as (
    update {schema}.progress set at = at - step.by from step
)
update {schema}.queue set paused_at = paused_at - step.by, created_at = created_at - step.by from step
