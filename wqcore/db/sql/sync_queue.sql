-- Makes a queue and its slots known to the database. The number of slots is fixed at the first start: a serial key is
-- hashed by it. Repeatable: yes. Returns the slots in force.
with added as (
    insert into {schema}.queue (name, slots, keep_hours, channel)
    values (%(queue)s, %(slots)s, %(keep_hours)s::jsonb, %(channel)s)
    on conflict (name) do nothing
    returning name, slots
),
made as (
    insert into {schema}.slot (queue, slot) select name, generate_series(0, slots - 1) from added
    on conflict do nothing
),
kept as (
    update {schema}.queue set keep_hours = %(keep_hours)s::jsonb
     where name = %(queue)s and keep_hours <> %(keep_hours)s::jsonb
)
select slots from added union all select slots from {schema}.queue where name = %(queue)s limit 1
