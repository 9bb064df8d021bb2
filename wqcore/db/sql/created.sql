-- When these jobs were inserted, which tells a job from another one that has the same id on another server.
-- Rides: job_pkey. Locks nothing. Repeatable: yes.
select id, created_at from {schema}.job where id = any(%(ids)s::bigint[])
