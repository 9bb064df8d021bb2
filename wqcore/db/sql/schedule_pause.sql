-- Pauses a schedule: whether it exists, and whether this has changed it. Rides: schedule_pkey. Repeatable: yes.
with changed as (
    update {schema}.schedule set paused_at = now(), updated_at = clock_timestamp()
     where name = %(name)s and paused_at is null returning name
)
select exists (select from {schema}.schedule where name = %(name)s), exists (select from changed)
