-- Makes an execution of a run and enqueues its job; no row when the run has ended or has had executions_max of them.
-- The serial key is that of the run, not of the execution as the kind has it: two executions of one run never overlap.
-- Locks: the run FOR KEY SHARE (foreign key). Rides: job_run_pkey, job_run_execution_run_id_idx. Repeatable: no, by its id.
insert into {schema}.job_run_execution (id, run_id, reason, resume_task_id, is_retry, due_at, wq_job_id)
select %(execution)s, r.id, 'EXECUTE_JOB', %(task)s::text, %(is_retry)s, greatest(%(run_at)s::timestamptz, now()),
       {wqcore}.enqueue('performRunExecution', json_build_object('id', %(execution)s::text), serial_key => 'runs-' || r.id,
                        run_at => case when %(run_at)s::timestamptz > now() then %(run_at)s::timestamptz end)
  from {schema}.job_run r
 where r.id = %(run)s and r.completed_at is null
   and (select count(*) from {schema}.job_run_execution x where x.run_id = r.id) < %(executions_max)s
returning id
