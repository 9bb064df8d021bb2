-- Starts runs: each takes a place of its queue and gets its first execution, which is enqueued; without a place it is QUEUED.
-- A row for each run that exists; `is_missing`: it needs a connection that is not there, and is left as it is.
-- Promises: a run takes one place at most, and no queue gives out more than max_jobs: the free places are read under the
--   queue's lock, and the oldest runs get them. startQueuedRuns is enqueued for the queue of runs that got no place too: a
--   place that was given back after this statement began has found nobody queued. Everything is one statement, so no run is
--   left PENDING without a job.
-- Locks: the runs in the order of their ids, then their queues in that of theirs. Rides: job_run_pkey, job_queue_pkey,
--   job_integration_pkey, connection_integration_id_idx. Repeatable: yes; only a run that has not started is touched.
with asked as materialized (
    select * from unnest(%(runs)s::text[], %(executions)s::text[]) as t (run, execution)
), run as materialized (
    select r.id, r.queue_id, r.version_id, r.account_id, r.queued_at, r.created_at
      from {schema}.job_run r
     where r.id = any (%(runs)s::text[]) and r.status in ('PENDING', 'QUEUED', 'WAITING_ON_CONNECTIONS')
     order by r.id for no key update
), missing as materialized (
    select distinct r.id from run r join {schema}.job_integration n on n.version_id = r.version_id
      join {schema}.integration i on i.id = n.integration_id and i.auth_source = 'HOSTED'
     where not exists (select from {schema}.connection c
                        where c.integration_id = i.id and c.enabled and c.account_id is not distinct from r.account_id)
), ready as materialized (
    select r.*, row_number() over (partition by r.queue_id order by r.queued_at nulls last, r.created_at, r.id) as nth
      from run r where not exists (select from missing m where m.id = r.id)
), queue as materialized (
    select q.id, q.max_jobs - q.job_count as places from {schema}.job_queue q
     where q.id in (select r.queue_id from ready r) order by q.id for no key update
), placed as materialized (
    select r.id, r.queue_id, r.nth <= q.places as has_place from ready r join queue q on q.id = r.queue_id
), place as (
    update {schema}.job_queue q set job_count = q.job_count + p.places
      from (select p.queue_id, count(*) as places from placed p where p.has_place group by p.queue_id) p
     where q.id = p.queue_id
), moved as (
    update {schema}.job_run u
       set status = case when not p.has_place then 'QUEUED' when v.preprocess_runs then 'PREPROCESSING' else 'STARTED' end,
           has_place = p.has_place,
           queued_at = case when p.has_place then u.queued_at else coalesce(u.queued_at, now()) end,
           started_at = case when p.has_place then now() end
      from placed p, {schema}.job_version v
     where u.id = p.id and v.id = u.version_id
    returning u.id, u.queue_id, u.status
), execution as (
    insert into {schema}.job_run_execution (id, run_id, reason, wq_job_id)
    select a.execution, m.id, case m.status when 'PREPROCESSING' then 'PREPROCESS' else 'EXECUTE_JOB' end,
           {wqcore}.enqueue('performRunExecution', json_build_object('id', a.execution), serial_key => 'runs-' || m.id)
      from moved m join asked a on a.run = m.id where m.status <> 'QUEUED'
), next as materialized (
    select {wqcore}.enqueue('startQueuedRuns', json_build_object('id', q.queue_id))
      from (select distinct m.queue_id from moved m) q
)
select r.id, (select m.status from moved m where m.id = r.id) as status,
       exists (select from missing m where m.id = r.id) as is_missing, (select count(*) from next) as n
  from {schema}.job_run r where r.id = any (%(runs)s::text[])
