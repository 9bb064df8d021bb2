-- The integrations of a version, by the keys of its code; what is not given is dropped.
-- Locks: the version's few rows; the version's row is held by the caller. Rides: job_integration_pkey. Repeatable: yes.
with given as materialized (
    select * from unnest(%(keys)s::text[], %(integrations)s::text[]) as t (key, integration_id)
), dropped as (
    delete from {schema}.job_integration i
     where i.version_id = %(version)s and not exists (select from given g where g.key = i.key)
)
insert into {schema}.job_integration (version_id, key, integration_id)
select %(version)s, key, integration_id from given
on conflict (version_id, key) do update set integration_id = excluded.integration_id
