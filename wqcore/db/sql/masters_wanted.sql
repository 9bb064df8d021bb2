-- How many masters a group of queues has work for: of each queue of `queues`, its unfinished jobs that are ready or due (those
-- that run are among them, because a claim leaves the row of a job where it is), counted up to `jobs_max` and divided by
-- `jobs_per_master`; the greatest of these. A paused queue asks for none. One float8, because a scaler may read no other type.
-- Rides job_ready and job_due from each slot, in their order, so that no plan reads the table or jobs of the future instead: in
-- millions of jobs it reads `jobs_max` entries a queue of each index. Needs only the observer's rights; locks nothing; may be
-- repeated.
select coalesce(max(ceil(least(ready.jobs + due.jobs, w.jobs_max) / w.jobs_per_master)), 0)::float8 as masters
  from unnest(%(queues)s::text[], %(jobs_per_master)s::float8[], %(jobs_max)s::bigint[])
       as w (queue, jobs_per_master, jobs_max)
  join {schema}.queue q on q.name = w.queue and q.paused_at is null
 cross join lateral (
       select count(*) as jobs
         from (select from generate_series(0, q.slots - 1) s (slot) cross join lateral (
                      select from {schema}.job j
                       where j.queue = w.queue and j.slot = s.slot and j.run_at is null
                       order by j.priority desc, (j.id + 0) limit w.jobs_max) one
                limit w.jobs_max) found) ready
 cross join lateral (
       select count(*) as jobs
         from (select from generate_series(0, q.slots - 1) s (slot) cross join lateral (
                      select from {schema}.job j
                       where j.queue = w.queue and j.slot = s.slot and j.run_at <= now()
                       order by j.run_at, j.id limit w.jobs_max) one
                limit w.jobs_max) found) due
