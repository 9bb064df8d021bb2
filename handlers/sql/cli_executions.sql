-- The executions of a run, oldest first. Rides: job_run_execution_run_id_idx. Repeatable: yes.
select reason, status, retry_count, is_retry, error, created_at, started_at, completed_at
  from {schema}.job_run_execution where run_id = %(run)s order by created_at, id
