-- The runs that wait for one of the missing connections `missing`.
-- Locks: none. Rides: waiting_run_missing_connection_id_idx. Repeatable: reads only.
select distinct r.id from {schema}.waiting_run w join {schema}.job_run r on r.id = w.run_id
 where w.missing_connection_id = any(%(missing)s) and r.status = 'WAITING_ON_CONNECTIONS'
 order by r.id
