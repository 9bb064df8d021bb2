-- What follows the end of runs: startQueuedRuns, once a queue; the events that their outputs carry, for the caller.
-- A row for each run that exists and has ended.
-- Locks: none. Rides: job_run_pkey. Repeatable: yes; one more startQueuedRuns finds nothing to do.
with run as materialized (
    select r.id, r.queue_id, r.environment_id, r.account_id,
           case when r.status = 'SUCCESS' and jsonb_typeof(r.output -> 'events') = 'array' then r.output -> 'events' end as events
      from {schema}.job_run r where r.id = any (%(runs)s::text[]) and r.completed_at is not null
), queued as materialized (
    select {wqcore}.enqueue('startQueuedRuns', json_build_object('id', q.queue_id))
      from (select distinct r.queue_id from run r) q
)
select r.id, r.environment_id, r.account_id, r.events from run r where (select count(*) from queued) > 0
