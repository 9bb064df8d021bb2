-- Lets a schedule go on with the first tick after this moment: whether it exists, and whether this has changed it.
-- Rides: schedule_pkey. Repeatable: yes.
with changed as (
    update {schema}.schedule set paused_at = null, next_tick = null, last_error = null, updated_at = clock_timestamp()
     where name = %(name)s and paused_at is not null returning name
)
select exists (select from {schema}.schedule where name = %(name)s), exists (select from changed)
