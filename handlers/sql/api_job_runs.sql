-- Runs of a job in an environment, the newest first, from the one that `cursor` names.
-- Rides: job_project_id_slug_key, job_run_job_id_number_key. Repeatable: yes.
select r.*, greatest(r.created_at, r.queued_at, r.started_at, r.completed_at) as updated_at
  from {schema}.job j join {schema}.job_run r on r.job_id = j.id
 where j.project_id = %(project)s and j.slug = %(job)s and r.environment_id = %(environment)s
   and r.number <= coalesce((select c.number from {schema}.job_run c where c.id = %(cursor)s and c.job_id = j.id),
                            9223372036854775807)
 order by r.number desc limit %(take)s
