-- One row per queue for `wqcore status`: how much waits, how long, and what is held.
-- Promises: cost is bounded, whatever the tables hold: counts stop at `cap` rows, and the oldest job is read from the head of each lane, past those that are held.
-- ready and due count held jobs too. retryable: of the jobs with a time that were counted, those whose time is to come and
--   that have failed.
-- Rides: job_ready, job_due, claim_pkey. Locks nothing. Repeatable: yes.
with recursive held as materialized (
    select s.queue, unnest(newest.ids) as id from {schema}.shard s
     cross join lateral (select ids from {schema}.claim c where c.shard = s.id order by c.turn desc limit 1) newest
),
place as (
    select q.name as queue, s.slot::smallint as slot from {schema}.queue q, generate_series(0, q.slots - 1) s (slot)
),
-- the priorities that a slot has, from one to the next below it
ready_lane as (
    select p.queue, p.slot, (
        select j.priority from {schema}.job j where j.queue = p.queue and j.slot = p.slot and j.run_at is null
         order by j.priority desc limit 1) as priority from place p
    union all
    select l.queue, l.slot, (
        select j.priority from {schema}.job j where j.queue = l.queue and j.slot = l.slot and j.run_at is null
           and j.priority < l.priority order by j.priority desc limit 1) from ready_lane l where l.priority is not null
),
due_lane as (
    select p.queue, p.slot, (
        select j.priority from {schema}.job j where j.queue = p.queue and j.slot = p.slot and j.run_at is not null
         order by j.priority desc limit 1) as priority from place p
    union all
    select l.queue, l.slot, (
        select j.priority from {schema}.job j where j.queue = l.queue and j.slot = l.slot and j.run_at is not null
           and j.priority < l.priority order by j.priority desc limit 1) from due_lane l where l.priority is not null
),
due as (
    select l.queue, min((
        select j.run_at from {schema}.job j where j.queue = l.queue and j.slot = l.slot and j.priority = l.priority
           and j.run_at is not null and j.run_at <= now() and j.id not in (select id from held)
         order by j.run_at, j.id limit 1)) as oldest
      from due_lane l where l.priority is not null group by l.queue
),
ready as (
    select l.queue, min((
        select j.created_at from {schema}.job j where j.queue = l.queue and j.slot = l.slot and j.priority = l.priority
           and j.run_at is null and j.id not in (select id from held) order by (j.id + 0) limit 1)) as oldest
      from ready_lane l where l.priority is not null group by l.queue
)
select q.name, q.slots, q.paused_at is not null as paused,
       (select count(*) from {schema}.shard s where s.queue = q.name) as shards,
       (select count(*) from (select from {schema}.job j where j.queue = q.name and j.run_at is null
                              limit %(cap)s) c) as ready,
       (select count(*) from (
            select from due_lane l cross join lateral (
                select from {schema}.job j where j.queue = l.queue and j.slot = l.slot and j.priority = l.priority
                   and j.run_at is not null and j.run_at <= now() limit %(cap)s) n
             where l.queue = q.name limit %(cap)s) c) as due,
       later.scheduled, later.retryable,
       (select count(*) from held h where h.queue = q.name) as held,
       extract(epoch from now() - least(ready.oldest, due.oldest))::float8 as oldest_waiting_s, q.paused_at
  from {schema}.queue q
  left join due on due.queue = q.name
  left join ready on ready.queue = q.name
 cross join lateral (
    select count(*) filter (where run_at > now()) as scheduled,
           count(*) filter (where run_at > now() and attempt > 0) as retryable
      from (select run_at, attempt from {schema}.job j where j.queue = q.name and j.run_at is not null limit %(cap)s) c
 ) later
 order by q.name
