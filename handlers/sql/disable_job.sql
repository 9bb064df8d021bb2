-- Marks the latest version of a job as disabled; its job, or none when the job is not known here.
-- Locks: the version's row. Rides: job_project_id_slug_key, job_alias_pkey. Repeatable: yes.
update {schema}.job_version v set enabled = false
  from {schema}.job j, {schema}.job_alias a
 where j.project_id = %(project)s and j.slug = %(slug)s
   and a.job_id = j.id and a.environment_id = %(environment)s and a.name = 'latest' and v.id = a.version_id
returning j.id as job_id
