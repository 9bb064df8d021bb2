-- Stops what an endpoint declares no longer: jobs (also those that it declares as disabled), sources, dynamic triggers.
-- Promises: what starts such a job is off until it is registered again; such a source accepts nothing; a dynamic trigger
--   without declaration starts no jobs. Registrations that users made at run time stay, for when it comes back.
-- Locks: of each job its version before its dispatcher and schedule, as a registration does; sources, then their events. The
--   endpoint's row is held by the caller. Rides: job_alias_pkey, event_dispatcher_environment_id_key_key,
--   schedule_source_environment_id_key_key. Repeatable: yes.
with gone as materialized (
    select j.id, v.id as version_id
      from {schema}.job_version v
      join {schema}.job_alias a on a.version_id = v.id and a.job_id = v.job_id and a.name = 'latest'
      join {schema}.job j on j.id = v.job_id
     where v.endpoint_id = %(endpoint)s and v.enabled and j.slug <> all (%(jobs)s)
), versions as (
    update {schema}.job_version v set enabled = false from gone g where v.id = g.version_id
    returning v.environment_id, g.id as job_id
), dispatchers as (
    update {schema}.event_dispatcher d set enabled = false from versions v
     where d.environment_id = v.environment_id and d.key = v.job_id
), schedules as (
    update {schema}.schedule_source s set active = false, next_tick = null from versions v
     where s.environment_id = v.environment_id and s.key = v.job_id
), sources as (
    update {schema}.trigger_source s set active = false
     where s.endpoint_id = %(endpoint)s and s.dynamic_trigger_id is null and s.key <> all (%(sources)s)
       and (s.active or exists (select from {schema}.source_event e where e.source_id = s.id and e.wanted))
    returning s.id
), events as (
    update {schema}.source_event e set wanted = false, registered = false from sources s where e.source_id = s.id
)
delete from {schema}.dynamic_trigger_job c using {schema}.dynamic_trigger t
 where t.id = c.dynamic_trigger_id and t.endpoint_id = %(endpoint)s
   and (t.type, t.slug) not in (select * from unnest(%(trigger_types)s::text[], %(trigger_slugs)s::text[]))
