-- Sets the ticks of a schedule; its row is held by the caller. Rides: schedule_source_pkey. Repeatable: yes.
update {schema}.schedule_source set last_tick = %(last_tick)s, next_tick = %(next_tick)s where id = %(id)s
