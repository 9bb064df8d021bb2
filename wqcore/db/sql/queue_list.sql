-- The queues as they are set: slots, since when each is paused, limits that were changed at run time, hours of retention.
-- Rides: queue, a row a queue. Locks nothing. Repeatable: yes.
select name, slots, paused_at, limits, keep_hours from {schema}.queue order by name
