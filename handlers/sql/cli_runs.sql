-- The newest runs of an environment, all or those of a status. Rides: job_run_listed. Repeatable: yes.
select r.id, j.slug as job, r.number, r.status, e.name as event, r.created_at, r.started_at, r.completed_at
  from {schema}.job_run r
  join {schema}.job j on j.id = r.job_id
  join {schema}.event_record e on e.id = r.event_id
 where r.environment_id = %(environment)s and (%(status)s::text is null or r.status = %(status)s)
 order by r.created_at desc limit %(limit)s
