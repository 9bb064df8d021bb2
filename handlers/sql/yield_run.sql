-- Adds the key of a yield, which the next executions are told.
-- Locks: the run. Rides: job_run_pkey. Repeatable: within its transaction only.
update {schema}.job_run set yielded = yielded || %(key)s::text where id = %(run)s and completed_at is null
