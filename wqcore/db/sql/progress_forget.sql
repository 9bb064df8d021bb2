-- Removes the progress of jobs whose run has ended. Rides: progress_pkey. Repeatable: yes.
delete from {schema}.progress where job = any(%(ids)s::bigint[])
