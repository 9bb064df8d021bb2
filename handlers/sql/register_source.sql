-- A source by environment and key, with a secret of its own: the one that it has already, else the given one.
-- Promises: the secret of a source changes only when its registration job says so.
-- Locks: the source's row, then the new secret's. Rides: trigger_source_environment_id_key_key. Repeatable: yes.
with source as (
    insert into {schema}.trigger_source (id, environment_id, endpoint_id, key, channel, version, params, integration_id,
        dynamic_trigger_id, register_job_id, registration_key, account_id, secret_id)
    values (%(id)s, %(environment)s, %(endpoint)s, %(key)s, %(channel)s, %(version)s, nullif(%(params)s::jsonb, 'null'),
        %(integration)s, %(dynamic_trigger)s, %(register_job)s, %(registration_key)s, %(account)s, %(secret_id)s)
    on conflict (environment_id, key) do update
       set endpoint_id = excluded.endpoint_id, channel = excluded.channel, version = excluded.version,
           params = excluded.params, integration_id = excluded.integration_id,
           register_job_id = excluded.register_job_id, account_id = excluded.account_id,
           secret_id = coalesce(trigger_source.secret_id, excluded.secret_id)
    returning id, active, environment_id, secret_id
), secret as (
    insert into {schema}.secret (id, environment_id, value_sealed)
    select secret_id, environment_id, %(sealed)s from source where secret_id = %(secret_id)s
)
select id, active from source
