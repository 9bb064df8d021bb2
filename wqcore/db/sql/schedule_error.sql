-- Notes why the due tick of a schedule could not make its job; writes only what is new. Rides: schedule_pkey.
-- Repeatable: yes.
update {schema}.schedule set last_error = %(error)s::text
 where name = %(name)s and updated_at = %(version)s::timestamptz and last_error is distinct from %(error)s::text
