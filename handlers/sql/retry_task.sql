-- Ends the present attempt of a task with an error, and plans the next; no row when the task has ended or is not of this run.
-- Locks: the task, its last attempt. Rides: task_pkey, task_attempt_task_id_number_key. Repeatable: in its transaction only.
with task as (
    update {schema}.task t set status = 'WAITING'
     where t.id = %(task)s and t.run_id = %(run)s and t.status in ('PENDING', 'WAITING', 'RUNNING')
    returning t.id
), last as materialized (
    select a.id, a.number from task t join {schema}.task_attempt a on a.task_id = t.id order by a.number desc limit 1
), failed as (
    update {schema}.task_attempt a set status = 'ERRORED', error = %(error)s from last l where a.id = l.id
)
insert into {schema}.task_attempt (id, task_id, number, run_at)
select %(attempt)s, t.id, coalesce(l.number, 1) + 1, %(run_at)s from task t left join last l on true
returning number
