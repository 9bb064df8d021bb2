-- How many masters of a group its waiting work asks for: of each queue of `queues`, its unfinished jobs that are ready or due
-- (those that run are among them, because a claim leaves the row of a job where it is), counted up to `jobs_max` and divided by
-- `jobs_per_master`; the greatest of these counts. A paused queue asks for none. One float8, for a scaler that reads no other
-- type. Rides job_ready and job_due, the latter from each slot, so that jobs of the future are not walked over: a table of
-- millions costs no more than `jobs_max` entries a queue. Needs only the rights of the observer; locks nothing; may be repeated.
select coalesce(max(ceil(least(ready.jobs + due.jobs, w.jobs_max) / w.jobs_per_master)), 0)::float8 as masters
  from unnest(%(queues)s::text[], %(jobs_per_master)s::float8[], %(jobs_max)s::bigint[])
       as w (queue, jobs_per_master, jobs_max)
  join {schema}.queue q on q.name = w.queue and q.paused_at is null
 cross join lateral (
       select count(*) as jobs
         from (select from {schema}.job j where j.queue = w.queue and j.run_at is null limit w.jobs_max) found) ready
 cross join lateral (
       select count(*) as jobs
         from (select from generate_series(0, q.slots - 1) s (slot) cross join lateral (
                      select from {schema}.job j
                       where j.queue = w.queue and j.slot = s.slot and j.run_at <= now() limit w.jobs_max) one
                limit w.jobs_max) found) due
