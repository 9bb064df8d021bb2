-- Begins an execution for its job, and returns all that the endpoint is told; no row when the job no longer has this
-- execution or the run has ended.
-- Promises: the task that the execution resumes goes on: a wait (noop) is COMPLETED, another is RUNNING. `tasks` are the
--   completed ones, oldest first, up to tasks_bytes_max bytes of output; one that is left out is asked for by its key.
-- Locks: the execution, then the task. Rides: the primary keys, task_run_id_seq_idx, job_integration_pkey.
-- Repeatable: yes, by the same job.
-- coalesce keeps it from riding job_run_execution_open, which has every run that waits, also for days.
with begun as (
    update {schema}.job_run_execution x
       set status = 'STARTED', started_at = coalesce(x.started_at, now())
      from {schema}.job_run r
     where x.id = %(execution)s and x.wq_job_id = %(job)s and coalesce(x.status) in ('PENDING', 'STARTED')
       and r.id = x.run_id and r.completed_at is null
    returning x.reason, x.retry_count, x.is_retry, x.resume_task_id, r.id as run_id, r.is_test, r.started_at, r.account_id,
              r.yielded, r.event_id, r.job_id, r.version_id, r.environment_id, r.endpoint_id
), resumed as (
    update {schema}.task t
       set status = case when t.noop then 'COMPLETED' else 'RUNNING' end,
           started_at = coalesce(t.started_at, now()), completed_at = case when t.noop then now() end
      from begun b
     where t.id = b.resume_task_id and t.run_id = b.run_id and t.status = 'WAITING'
    returning t.id, t.idempotency_key, t.noop, t.output, t.parent_id, t.seq
), done as (
    select t.*, sum(octet_length(t.output::text)) over (order by t.seq) as bytes from (
        select t.id, t.idempotency_key, t.noop, t.output, t.parent_id, t.seq
          from begun b join {schema}.task t on t.run_id = b.run_id and t.status = 'COMPLETED'
         union all select r.* from resumed r where r.noop
    ) t
)
select b.reason, b.retry_count, b.is_retry, b.run_id, b.is_test, b.started_at, b.account_id, b.yielded,
       e.event_id, e.name as event_name, e.payload::text as payload, e.context::text as context, e."timestamp",
       e.source_context::text as source_context, j.slug as job_slug, v.version,
       n.id as environment_id, n.slug as environment_slug, n.type as environment_type, n.api_key_sealed,
       o.id as organization_id, o.title as organization_title, o.slug as organization_slug,
       p.id as project_id, p.name as project_name, p.slug as project_slug, d.url,
       (select jsonb_agg(jsonb_build_object('id', t.id, 'idempotencyKey', t.idempotency_key, 'status', 'COMPLETED',
                                            'noop', t.noop, 'output', t.output, 'parentId', t.parent_id) order by t.seq)
          from done t where coalesce(t.bytes, 0) <= %(tasks_bytes_max)s)::text as tasks,
       (select jsonb_agg(distinct jsonb_build_array(c.key, convert_from(c.access_token_sealed, 'UTF8'), c.scopes))
          from (select distinct on (n.key) n.key, c.access_token_sealed, to_jsonb(c.scopes) as scopes
                  from {schema}.job_integration n
                  join {schema}.integration i on i.id = n.integration_id and i.auth_source = 'HOSTED'
                  join {schema}.connection c on c.integration_id = i.id and c.enabled
                   and c.account_id is not distinct from b.account_id
                 where n.version_id = b.version_id order by n.key, c.created_at desc, c.id) c) as connections
  from begun b
  join {schema}.event_record e on e.id = b.event_id
  join {schema}.job j on j.id = b.job_id
  join {schema}.job_version v on v.id = b.version_id
  join {schema}.environment n on n.id = b.environment_id
  join {schema}.organization o on o.id = n.organization_id
  join {schema}.project p on p.id = n.project_id
  join {schema}.endpoint d on d.id = b.endpoint_id
