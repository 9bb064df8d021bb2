-- Keeps what a source's registration job reports: it is active, what its service sends, its data, its secret.
-- Promises: what is reported is `registered`; what is neither reported nor wanted is dropped. Data and secret stay when none is
--   given (`sealed` null, `has_data` false). One row, or none when the environment has no such source or endpoint.
-- Locks: the source's row, then its secret and its events. Rides: trigger_source_environment_id_key_key. Repeatable: yes.
with endpoint as (
    select id from {schema}.endpoint where environment_id = %(environment)s and slug = %(client)s
), source as (
    update {schema}.trigger_source s
       set active = true, endpoint_id = e.id,
           channel_data = case when %(has_data)s then %(data)s::jsonb else s.channel_data end,
           secret_id = coalesce(s.secret_id, case when %(sealed)s::bytea is not null then %(secret_id)s end)
      from endpoint e where s.environment_id = %(environment)s and s.key = %(key)s
    returning s.id, s.key, s.environment_id, s.secret_id
), secret as (
    insert into {schema}.secret (id, environment_id, value_sealed)
    select secret_id, environment_id, %(sealed)s from source where %(sealed)s::bytea is not null
    on conflict (id) do update set value_sealed = excluded.value_sealed, updated_at = now()
), given as materialized (
    select * from unnest(%(names)s::text[], %(values)s::text[]) as t (name, value)
), registered as (
    update {schema}.source_event e set registered = true from source s, given g
     where e.source_id = s.id and e.name = g.name and e.value = g.value
), dropped as (
    delete from {schema}.source_event e using source s
     where e.source_id = s.id and not e.wanted
       and not exists (select from given g where g.name = e.name and g.value = e.value)
)
select id, key from source
