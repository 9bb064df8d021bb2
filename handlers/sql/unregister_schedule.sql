-- Stops a schedule that user code had registered; its key, or none when there never was such a one.
-- Locks: its row. Rides: schedule_source_environment_id_key_key. Repeatable: yes.
update {schema}.schedule_source set active = false, next_tick = null
 where environment_id = %(environment)s and key = %(key)s
returning key
