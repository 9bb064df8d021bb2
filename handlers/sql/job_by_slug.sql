-- A job that is registered in this environment: one whose version `latest` is enabled.
-- Rides: job_project_id_slug_key, job_alias_pkey. Locks: none. Repeatable: yes.
select j.id
  from {schema}.job j
  join {schema}.job_alias a on a.job_id = j.id and a.environment_id = %(environment)s and a.name = 'latest'
  join {schema}.job_version v on v.id = a.version_id and v.enabled
 where j.project_id = %(project)s and j.slug = %(slug)s
