-- A worker takes its lease: the row that is also its fence. Then asks the owners of too many slots to share.
-- Repeatable: yes; the id was chosen by the master before the fork.
with added as (
    insert into {schema}.shard (id, process, queue) values (%(shard)s, %(process)s, %(queue)s)
    on conflict (id) do nothing
)
select pg_notify(%(channel)s, 'slots')
