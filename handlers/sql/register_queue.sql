-- A queue of runs with its limit, by environment and name; `raised` when more may run than before.
-- Locks: the queue's row, until the registration commits. Rides: job_queue_environment_id_name_key. Repeatable: yes.
insert into {schema}.job_queue (id, environment_id, name, max_jobs)
values (%(id)s, %(environment)s, %(name)s, %(max_jobs)s)
on conflict (environment_id, name) do update set max_jobs = excluded.max_jobs
returning id, max_jobs > (select q.max_jobs from {schema}.job_queue q
                           where q.environment_id = %(environment)s and q.name = %(name)s) as raised
