-- Asks masters to drain; their keepers read it with the next heartbeat. The first request stays.
-- Rides: process_pkey. Locks: rows of process in no order, each for a moment, beside a heartbeat. Repeatable: yes.
update {schema}.process set drain_asked_at = coalesce(drain_asked_at, now()) where id = any(%(ids)s::uuid[])
returning id::text
