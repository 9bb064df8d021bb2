-- A shard takes up to n free permits of its queue; below `total` only, because surplus ones are to vanish.
-- Promises: fenced; two shards never take the same permit. Rides: permit_pkey.
-- Locks: the shard's row, then permits in order, skipping those that another shard is taking. Repeatable: yes.
with me as materialized (
    select id from {schema}.shard where id = %(shard)s for no key update
),
free as materialized (
    select queue, permit from {schema}.permit
     where queue = %(queue)s and shard is null and permit < %(total)s order by permit limit %(n)s
       for update skip locked
)
update {schema}.permit p set shard = me.id from me, free
 where p.queue = free.queue and p.permit = free.permit
