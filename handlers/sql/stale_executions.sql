-- Executions that are open, due for 5 s and without an unfinished job: it died with its worker, or failed, or found that
-- the run had ended; whoever ends a run leaves its open executions alone, as locking them after the run could deadlock.
-- A job in the table is found by its primary key: `= any (array[…])` leaves the planner no other way, however stale its
-- statistics. Locks: none. Rides: job_run_execution_open, job_pkey. Repeatable: yes.
select x.id, x.wq_job_id from {schema}.job_run_execution x
 where x.status in ('PENDING', 'STARTED') and x.due_at < now() - interval '5 s'
   and not exists (select from {wqcore}.job j where j.id = any (array[x.wq_job_id]))
 order by x.due_at limit %(executions_max)s
