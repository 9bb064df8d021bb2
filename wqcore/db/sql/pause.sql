-- Pauses a queue, or all when it is null: nothing of it is started any more. Repeatable: yes.
select {schema}.pause(%(queue)s::text)
