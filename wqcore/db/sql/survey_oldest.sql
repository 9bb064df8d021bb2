-- How long the oldest waiting job of each queue has waited, in seconds: ready or due, and held by no shard.
-- Rides: job_ready, one probe for each slot and priority that has jobs (a loose scan), and job_due, one a slot; both pass
-- over the jobs that shards hold. Locks nothing. Repeatable: yes.
with recursive held as materialized (
    select unnest(newest.ids) as id
      from {schema}.shard s
     cross join lateral (select ids from {schema}.claim c where c.shard = s.id order by c.turn desc limit 1) newest
),
lane as (
    select s.queue, s.slot, top.priority
      from {schema}.slot s
     cross join lateral (select priority from {schema}.job where queue = s.queue and slot = s.slot and run_at is null
                          order by priority desc limit 1) top
    union all
    select l.queue, l.slot, next.priority
      from lane l
     cross join lateral (select priority from {schema}.job where queue = l.queue and slot = l.slot and run_at is null
                            and priority < l.priority order by priority desc limit 1) next
),
first as (
    select l.queue, ready.created_at as since
      from lane l
     cross join lateral (select created_at from {schema}.job
                          where queue = l.queue and slot = l.slot and priority = l.priority and run_at is null
                            and id not in (select id from held) order by (id + 0) limit 1) ready
    union all
    select s.queue, due.run_at
      from {schema}.slot s
     cross join lateral (select run_at from {schema}.job
                          where queue = s.queue and slot = s.slot and run_at is not null and run_at <= now()
                            and id not in (select id from held) order by run_at, id limit 1) due
)
select queue, extract(epoch from now() - min(since))::float8 as oldest_s from first group by queue
