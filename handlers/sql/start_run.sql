-- Starts a run: takes a place of its queue, makes its first execution and enqueues that; without a place the run is QUEUED.
-- Promises: a run takes one place at most, and no queue gives out more than max_jobs: `job_count < max_jobs` is asked of the
--   newest version of the row. A run whose version needs a connection that is missing is left as it is: `is_missing`.
--   startQueuedRuns is enqueued for a run that got no place too: a place that was given back after this statement began
--   has found nobody queued. Everything is one statement, so no run is left PENDING without a job.
-- Locks: the run, then its queue. Rides: job_run_pkey, job_queue_pkey, job_integration_pkey, connection_integration_id_idx.
-- Repeatable: yes; only a run that has not started is touched.
with run as materialized (
    select r.id, r.queue_id, r.version_id, r.account_id, v.preprocess_runs
      from {schema}.job_run r join {schema}.job_version v on v.id = r.version_id
     where r.id = %(run)s and r.status in ('PENDING', 'QUEUED', 'WAITING_ON_CONNECTIONS')
       for no key update of r
), missing as materialized (
    select from run r join {schema}.job_integration n on n.version_id = r.version_id
      join {schema}.integration i on i.id = n.integration_id and i.auth_source = 'HOSTED'
     where not exists (select from {schema}.connection c
                        where c.integration_id = i.id and c.enabled and c.account_id is not distinct from r.account_id)
), place as (
    update {schema}.job_queue q set job_count = q.job_count + 1 from run r
     where q.id = r.queue_id and q.job_count < q.max_jobs and not exists (select from missing)
    returning q.id
), moved as (
    update {schema}.job_run u
       set status = case when p.id is null then 'QUEUED' when r.preprocess_runs then 'PREPROCESSING' else 'STARTED' end,
           has_place = p.id is not null,
           queued_at = case when p.id is null then coalesce(u.queued_at, now()) else u.queued_at end,
           started_at = case when p.id is not null then now() end
      from run r left join place p on true
     where u.id = r.id and not exists (select from missing)
    returning u.id, u.queue_id, u.status
), execution as (
    insert into {schema}.job_run_execution (id, run_id, reason, wq_job_id)
    select %(execution)s, m.id, case m.status when 'PREPROCESSING' then 'PREPROCESS' else 'EXECUTE_JOB' end,
           {wqcore}.enqueue('performRunExecution', json_build_object('id', %(execution)s::text),
                            serial_key => 'runs-' || m.id)
      from moved m where m.status <> 'QUEUED'
), next as materialized (
    select {wqcore}.enqueue('startQueuedRuns', json_build_object('id', m.queue_id)) from moved m
)
select (select m.status from moved m) as status, exists (select from missing) as is_missing, (select count(*) from next) as n
  from {schema}.job_run where id = %(run)s
