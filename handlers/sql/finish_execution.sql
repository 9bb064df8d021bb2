-- Ends an execution whose run goes on; no row when the job no longer has it. Cold: part of a transaction.
-- Promises: whoever gets the row is the only one that writes what the endpoint answered. `is_open`: the run has not ended.
-- Locks: the execution. Rides: job_run_execution_pkey. Repeatable: yes, without effect.
-- coalesce keeps it from riding job_run_execution_open, which has every run that waits, also for days.
update {schema}.job_run_execution x set status = 'SUCCESS', completed_at = now()
  from {schema}.job_run r
 where x.id = %(execution)s and x.wq_job_id = %(job)s and coalesce(x.status) = 'STARTED' and r.id = x.run_id
returning r.id as run_id, r.completed_at is null as is_open
