-- A run of an environment (null: of any, for operators), with the names of its job. Rides: job_run_pkey. Repeatable: yes.
select r.*, greatest(r.created_at, r.queued_at, r.started_at, r.completed_at) as updated_at,
       j.slug as job_slug, v.version, e.event_id as event, e.name as event_name
  from {schema}.job_run r
  join {schema}.job j on j.id = r.job_id
  join {schema}.job_version v on v.id = r.version_id
  join {schema}.event_record e on e.id = r.event_id
 where r.id = %(run)s and coalesce(%(environment)s, r.environment_id) = r.environment_id
