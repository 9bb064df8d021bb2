-- Performs an execution again: 500 ms after the first time, each time 1.5 times later. No row when it has been performed
-- again retries_max times, or the job no longer has it, or the run has ended.
-- Locks: the execution. Rides: job_run_execution_pkey. Repeatable: yes, without effect: the execution gets another job.
-- coalesce keeps it from riding job_run_execution_open, which has every run that waits, also for days.
update {schema}.job_run_execution x
   set status = 'PENDING', retry_count = x.retry_count + 1, is_retry = true, error = %(error)s,
       due_at = now() + interval '500 ms' * 1.5 ^ x.retry_count,
       wq_job_id = {wqcore}.enqueue('performRunExecution', json_build_object('id', x.id), serial_key => 'runs-' || x.run_id,
                                    run_at => now() + interval '500 ms' * 1.5 ^ x.retry_count)
  from {schema}.job_run r
 where x.id = %(execution)s and x.wq_job_id = %(job)s and coalesce(x.status) in ('PENDING', 'STARTED')
   and x.retry_count < %(retries_max)s and r.id = x.run_id and r.completed_at is null
returning x.id
