-- Resumes a queue, or all when it is null. Repeatable: yes.
select {schema}.resume(%(queue)s::text)
