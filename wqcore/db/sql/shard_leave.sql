-- A drained worker leaves: its slots and permits become free, its lease and journal are deleted.
-- Locks: the shard's row, then slots in order. Repeatable: yes.
with gone as (
    delete from {schema}.shard where id = %(shard)s returning id
),
freed as (
    update {schema}.slot set shard = null where shard = %(shard)s
),
permitted as (
    update {schema}.permit set shard = null where shard = %(shard)s
),
dropped as (
    delete from {schema}.claim where shard = %(shard)s
)
select (select count(*) from gone), pg_notify(%(channel)s, 'slots')
