-- Ends a task, COMPLETED or ERRORED, with its open attempts; the task as it then is.
-- Promises: a task ends once: one that has ended is returned unchanged. No row: no such task in the environment. An open
--   task that comes back was ended by a transaction that this statement's snapshot does not see; ask again.
-- Locks: the task, then its attempts. Rides: task_pkey, job_run_pkey, task_attempt_task_id_number_key. Repeatable: yes.
with found as materialized (
    select t.* from {schema}.task t join {schema}.job_run r on r.id = t.run_id
     where t.id = %(task)s and t.run_id = %(run)s and r.environment_id = %(environment)s
), ended as (
    update {schema}.task t
       set status = %(status)s, output = %(output)s, output_properties = %(properties)s, error = %(error)s,
           completed_at = now()
      from found f
     where t.id = f.id and t.status in ('PENDING', 'WAITING', 'RUNNING')
    returning t.*
), attempts as (
    update {schema}.task_attempt a set status = %(status)s, error = %(error)s
      from ended e where a.task_id = e.id and a.status in ('PENDING', 'STARTED')
)
select t.*, (select count(*) from {schema}.task_attempt a where a.task_id = t.id) as attempts
  from (select * from ended union all select * from found where not exists (select from ended)) t
