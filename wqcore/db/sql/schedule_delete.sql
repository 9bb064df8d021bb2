-- Removes a schedule; a row if there was one. Jobs that it has made stay. Rides: schedule_pkey. Repeatable: yes.
delete from {schema}.schedule where name = %(name)s returning name
