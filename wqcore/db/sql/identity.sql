-- Which schema of which database this is, whatever host or pooler led to it: the microsecond in which it was made, which was
-- written then and goes with it to standbys and into dumps.
-- Rides: migration_pkey. Locks nothing. Repeatable: yes.
select extract(epoch from applied_at)::text from {schema}.migration where version = 1
