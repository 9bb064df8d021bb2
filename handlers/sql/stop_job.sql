-- Turns off what starts a job by itself: its dispatcher and its schedule. Nothing is done when it has none.
-- Locks: the two rows. Rides: event_dispatcher_environment_id_key_key, schedule_source_environment_id_key_key. Repeatable: yes.
with dispatcher as (
    update {schema}.event_dispatcher set enabled = false where environment_id = %(environment)s and key = %(job)s and enabled
)
update {schema}.schedule_source set active = false, next_tick = null
 where environment_id = %(environment)s and key = %(job)s and active
