-- Makes the permits of a queue as many as its max_workers_total (null: none). Surplus ones that are owned go when their
-- owner gives them up. Repeatable: yes.
with added as (
    insert into {schema}.permit (queue, permit) select %(queue)s, n from generate_series(0, %(total)s::integer - 1) n
    on conflict do nothing
)
delete from {schema}.permit
 where queue = %(queue)s and shard is null and permit >= coalesce(%(total)s::integer, 0)
