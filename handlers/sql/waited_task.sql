-- The task that a run waits for. Locks: none. Rides: task_pkey. Repeatable: yes.
select t.id, t.operation, t.delay_until from {schema}.task t where t.id = %(task)s and t.run_id = %(run)s
