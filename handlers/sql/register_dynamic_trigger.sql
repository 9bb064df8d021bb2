-- A dynamic trigger or schedule of an endpoint, and exactly those of the given jobs that are registered in its environment;
-- a job that is registered later joins by itself (join_dynamic_trigger.sql).
-- Locks: the trigger's row, then its connections. Rides: dynamic_trigger_endpoint_id_slug_type_key. Repeatable: yes.
with trigger as (
    insert into {schema}.dynamic_trigger (id, endpoint_id, environment_id, slug, type, register_job_id)
    values (%(id)s, %(endpoint)s, %(environment)s, %(slug)s, %(type)s, %(register_job)s)
    on conflict (endpoint_id, slug, type) do update set register_job_id = excluded.register_job_id
    returning id, environment_id
), jobs as materialized (
    select j.id from {schema}.job j
      join {schema}.job_alias a on a.job_id = j.id and a.environment_id = %(environment)s and a.name = 'latest'
     where j.project_id = %(project)s and j.slug = any (%(jobs)s)
), dropped as (
    delete from {schema}.dynamic_trigger_job c using trigger t
     where c.dynamic_trigger_id = t.id and c.job_id not in (select id from jobs)
), connected as (
    insert into {schema}.dynamic_trigger_job (dynamic_trigger_id, job_id)
    select t.id, j.id from trigger t, jobs j
    on conflict do nothing
)
select id from trigger
