-- The schedule of a key. Rides: schedule_source_environment_id_key_key. Locks: none. Repeatable: yes.
select id from {schema}.schedule_source where environment_id = %(environment)s and key = %(key)s
