-- A run that was preprocessed is executed: its status, and the properties that people see.
-- Locks: the run. Rides: job_run_pkey. Repeatable: yes.
update {schema}.job_run set status = 'STARTED', properties = %(properties)s::text::jsonb
 where id = %(run)s and status = 'PREPROCESSING'
