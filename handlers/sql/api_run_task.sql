-- The task of a run for an idempotency key: the one that is there, unchanged, or a new one with its first attempt; with an
--   operation, its performTaskOperation is enqueued.
-- Promises: one task a (run, idempotency key). No row: no such run in the environment. A row without an id: the run has
--   ended (run_ended, run_status), or the task was committed by another transaction after this statement's snapshot; ask again.
--   A task that the platform performs is RUNNING even before its time (the job waits for that), because the SDK goes on
--   waiting for a RUNNING operation; a run that ends in this moment may keep an open task, which nobody executes.
-- Locks: the unique index entry. Rides: job_run_pkey, task_run_id_idempotency_key_key, task_attempt_task_id_number_key.
-- Repeatable: yes.
with run as materialized (
    select r.id, r.status, r.completed_at from {schema}.job_run r where r.id = %(run)s and r.environment_id = %(environment)s
), made as (
    insert into {schema}.task (id, run_id, parent_id, idempotency_key, name, display_key, icon, description, status, noop,
                               operation, params, properties, style, redact, delay_until, started_at, completed_at)
    select %(id)s, r.id, %(parent)s, %(key)s, %(name)s, %(display_key)s, %(icon)s, %(description)s, s.status, %(noop)s,
           %(operation)s, %(params)s, %(properties)s, %(style)s, %(redact)s, %(delay_until)s, now(),
           case when s.status = 'COMPLETED' then now() end
      from run r,
           (select case when %(operation)s::text is not null then 'RUNNING'
                        when %(delay_until)s::timestamptz > now() then 'WAITING'
                        when %(noop)s then 'COMPLETED' else 'RUNNING' end as status) s
     where r.completed_at is null
    on conflict (run_id, idempotency_key) do nothing
    returning *
), attempted as (
    insert into {schema}.task_attempt (id, task_id, number, status)
    select %(attempt)s, m.id, 1, case when m.status = 'COMPLETED' then 'COMPLETED' else 'PENDING' end from made m
), queued as materialized (
    select {wqcore}.enqueue('performTaskOperation', json_build_object('id', m.id),
               run_at => case when m.delay_until > now() then m.delay_until end)
      from made m where m.operation is not null
)
select r.status as run_status, r.completed_at is not null as run_ended, t.*
  from run r left join (
    select m.*, 1 as attempts from made m
    union all
    select o.*, (select count(*) from {schema}.task_attempt a where a.task_id = o.id)
      from {schema}.task o where o.run_id = %(run)s and o.idempotency_key = %(key)s
  ) t on true
 where (select count(*) from queued) >= 0
