-- Ends a run: its execution, the run with its output, its place in the queue, its open tasks, and runFinished. All ends are
-- this statement: that of an execution by the job that performs it (execution, job), or of the run itself (run).
-- Promises: a run ends once, and gives its place back exactly once: has_place, read under the run's lock, decides. A job that
--   lost its execution ends nothing. Returns the run, or no row when nothing was ended.
-- Locks: the execution, the run, its queue, its tasks. Rides: the primary keys, task_run_id_seq_idx.
-- Repeatable: yes, without effect.
-- coalesce keeps it from riding job_run_execution_open, which has every run that waits, also for days.
with execution as (
    update {schema}.job_run_execution x
       set status = case when %(status)s = 'SUCCESS' then 'SUCCESS' else 'FAILURE' end, error = %(error)s, completed_at = now()
     where x.id = %(execution)s::text and x.wq_job_id = %(job)s::bigint and coalesce(x.status) in ('PENDING', 'STARTED')
    returning x.run_id
), run as materialized (
    select r.id, r.queue_id, r.has_place from {schema}.job_run r
     where r.id = coalesce((select x.run_id from execution x), %(run)s::text) and r.completed_at is null
       for no key update of r
), ended as (
    update {schema}.job_run u
       set status = %(status)s, output = %(output)s::text::jsonb, completed_at = now(), has_place = false
      from run r where u.id = r.id
    returning u.id
), place as (
    update {schema}.job_queue q set job_count = q.job_count - 1 from run r where q.id = r.queue_id and r.has_place
), tasks as (
    update {schema}.task t
       set status = case when t.id = %(failed_task)s::text then 'ERRORED' else 'CANCELED' end,
           output = case when t.id = %(failed_task)s::text then %(output)s::text::jsonb else t.output end,
           error = case when t.id = %(failed_task)s::text then %(error)s else t.error end,
           completed_at = now()
      from run r where t.run_id = r.id and t.status in ('PENDING', 'WAITING', 'RUNNING')
), finished as materialized (
    select e.id, {wqcore}.enqueue('runFinished', json_build_object('id', e.id)) from ended e
)
select f.id from finished f
