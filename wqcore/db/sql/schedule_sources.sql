-- Who has set the schedules of these names. Rides: schedule_pkey. Repeatable: yes.
select name, source from {schema}.schedule where name = any(%(names)s::text[])
