-- Ends a task of a run as COMPLETED or ERRORED, with its last attempt; no row when it has ended or is not of this run.
-- Locks: the task, its last attempt. Rides: task_pkey, task_attempt_task_id_number_key. Repeatable: yes, without effect.
with task as (
    update {schema}.task t
       set status = %(status)s, output = %(output)s::text::jsonb, error = %(error)s, completed_at = now(),
           output_properties = coalesce(%(properties)s::text::jsonb, t.output_properties)
     where t.id = %(task)s and t.run_id = %(run)s and t.status in ('PENDING', 'WAITING', 'RUNNING')
    returning t.id
), attempt as (
    update {schema}.task_attempt a set status = %(status)s, error = %(error)s
      from task t where a.id = (select l.id from {schema}.task_attempt l where l.task_id = t.id order by l.number desc limit 1)
)
select t.id from task t
