-- What a source asks its service for: the given pairs. Returns them, and what the service still sends though nobody asks.
-- What was never registered and is not wanted any more is dropped.
-- Locks: the source's events; the source's row is held by the caller. Rides: source_event_pkey. Repeatable: yes.
with given as materialized (
    select * from unnest(%(names)s::text[], %(values)s::text[]) as t (name, value)
), before as materialized (
    select name, value, registered from {schema}.source_event where source_id = %(source)s
), wanted as (
    insert into {schema}.source_event (source_id, name, value)
    select %(source)s, name, value from given
    on conflict (source_id, name, value) do update set wanted = true
), orphaned as (
    update {schema}.source_event e set wanted = false
     where e.source_id = %(source)s and e.registered
       and not exists (select from given g where g.name = e.name and g.value = e.value)
), dropped as (
    delete from {schema}.source_event e
     where e.source_id = %(source)s and not e.registered
       and not exists (select from given g where g.name = e.name and g.value = e.value)
)
select coalesce(g.name, b.name) as name, coalesce(g.value, b.value) as value, coalesce(b.registered, false) as registered,
       g.name is not null as wanted
  from given g full join before b on b.name = g.name and b.value = g.value
 where g.name is not null or b.registered
 order by 1, 2
