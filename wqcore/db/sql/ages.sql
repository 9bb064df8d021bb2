-- How long the oldest waiting job of each lane has waited, in seconds: asked by a queue with ageing only.
-- Rides: job_ready and job_due, one row a lane. Locks nothing. Repeatable: yes.
select lane.slot, lane.priority,
       extract(epoch from now() - least(ready.created_at, due.run_at))::float8 as waited_s
  from unnest(%(lane_slots)s::bigint[], %(lane_priorities)s::bigint[], %(lane_after)s::bigint[],
              %(due_after_us)s::bigint[], %(due_after_id)s::bigint[])
       as lane (slot, priority, after, after_us, after_id)
  left join lateral (
    select created_at from {schema}.job
     where queue = %(queue)s and slot = lane.slot::smallint and priority = lane.priority::smallint
       and run_at is null and (id + 0) > lane.after
     order by (id + 0) limit 1) ready on true
  left join lateral (
    select run_at from {schema}.job
     where queue = %(queue)s and slot = lane.slot::smallint and priority = lane.priority::smallint
       and run_at is not null and run_at <= now()
       and (run_at, id) > (timestamptz '2000-01-01 00:00:00+00' + lane.after_us * interval '1 microsecond',
                           lane.after_id)
     order by run_at, id limit 1) due on true
 where ready.created_at is not null or due.run_at is not null
