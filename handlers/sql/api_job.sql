-- The job of a slug, if this environment has a version of it. Rides: job_project_id_slug_key,
--   job_version_job_id_version_environment_id_key. Repeatable: yes.
select j.id from {schema}.job j
 where j.project_id = %(project)s and j.slug = %(job)s
   and exists (select from {schema}.job_version v where v.job_id = j.id and v.environment_id = %(environment)s)
