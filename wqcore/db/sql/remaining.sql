-- Which of these jobs are still unfinished (their revision changed while they ran), with their slot and priority.
-- Rides: job_pkey. Locks nothing. Repeatable: yes.
select id, slot, priority from {schema}.job where id = any(%(ids)s::bigint[])
