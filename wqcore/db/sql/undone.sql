-- Jobs of these queues that somebody could work on now: ready, due, or held by a shard; at most n of them, with what
-- explains why they are still there.
-- Promises: no row means that a drain has nothing left to do. Rides: job_ready, job_due (a test's table is small).
-- Locks nothing. Repeatable: yes.
with held as materialized (
    select distinct unnest(newest.ids) as id
      from {schema}.shard s
     cross join lateral (select ids from {schema}.claim c where c.shard = s.id order by c.turn desc limit 1) newest
     where s.queue = any(%(queues)s::text[])
)
select j.id, j.kind, j.queue, h.id is not null as held, q.paused_at is not null as paused, j.attempt, j.max_attempts,
       j.errors -> -1 ->> 'error' as error,
       (select s.process::text from {schema}.slot o join {schema}.shard s on s.id = o.shard
         where o.queue = j.queue and o.slot = j.slot) as owner
  from {schema}.job j
  join {schema}.queue q on q.name = j.queue
  left join held h on h.id = j.id
 where j.queue = any(%(queues)s::text[]) and (h.id is not null or j.run_at is null or j.run_at <= now())
 limit %(n)s
