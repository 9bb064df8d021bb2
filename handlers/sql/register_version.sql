-- A version of a job in its environment, and the alias `latest`, which names what the endpoint declared last: that is what
-- it runs, also after a step back to an older version.
-- Locks: the version's row, then the alias. Rides: job_version_job_id_version_environment_id_key, job_alias_pkey. Repeatable: yes.
with version as (
    insert into {schema}.job_version (id, job_id, environment_id, endpoint_id, queue_id, version, event, trigger,
                                      start_position, preprocess_runs, examples)
    values (%(id)s, %(job)s, %(environment)s, %(endpoint)s, %(queue)s, %(version)s, %(event)s, %(trigger)s,
            %(start_position)s, %(preprocess_runs)s, %(examples)s)
    on conflict (job_id, version, environment_id) do update
       set endpoint_id = excluded.endpoint_id, queue_id = excluded.queue_id, enabled = true, event = excluded.event,
           trigger = excluded.trigger, start_position = excluded.start_position,
           preprocess_runs = excluded.preprocess_runs, examples = excluded.examples
    returning id, job_id, environment_id
), alias as (
    insert into {schema}.job_alias (job_id, environment_id, name, version_id)
    select job_id, environment_id, 'latest', id from version
    on conflict (job_id, environment_id, name) do update set version_id = excluded.version_id
)
select id from version
