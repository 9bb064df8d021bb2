-- Begins the operation of a task. `is_open`: it is to be performed; false when task or run have ended, or when its next
-- attempt is planned for later, with a job of its own. No row when there is no such task.
-- Locks: the task. Rides: task_pkey, task_attempt_task_id_number_key. Repeatable: yes.
with task as materialized (
    select t.id, t.run_id, t.operation, t.params, t.started_at, a.attempts,
           t.status in ('PENDING', 'WAITING', 'RUNNING') and r.completed_at is null and coalesce(a.run_at <= now(), true) as is_open
      from {schema}.task t join {schema}.job_run r on r.id = t.run_id
      left join lateral (select l.number as attempts, l.run_at from {schema}.task_attempt l
                          where l.task_id = t.id order by l.number desc limit 1) a on true
     where t.id = %(task)s
), begun as (
    update {schema}.task u set status = 'RUNNING', started_at = coalesce(u.started_at, now())
      from task t where u.id = t.id and t.is_open and u.status in ('PENDING', 'WAITING', 'RUNNING')
)
select t.run_id, t.operation, t.params, coalesce(t.attempts, 1) as attempts, t.is_open from task t
