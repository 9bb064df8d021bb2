-- Runs of a job in an environment that have not ended, the newest first, at most 1000.
-- Rides: job_project_id_slug_key, job_run_job_id_number_key. Repeatable: yes.
select r.id
  from {schema}.job j join {schema}.job_run r on r.job_id = j.id
 where j.project_id = %(project)s and j.slug = %(job)s and r.environment_id = %(environment)s and r.completed_at is null
 order by r.number desc limit 1000
