-- Changes what a queue may do, and tells its workers. Locks: the queue's row. Repeatable: yes.
with changed as (
    update {schema}.queue set limits = limits - %(removed)s::text[] || %(given)s::jsonb where name = %(queue)s
    returning limits, channel
)
select limits::text, pg_notify(channel, 'queue') from changed
