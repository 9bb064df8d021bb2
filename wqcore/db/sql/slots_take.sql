-- A shard takes up to n free slots of its queue.
-- Promises: fenced; two shards never take the same slot. Rides: slot_pkey.
-- Locks: the shard's row, then the slots in order, skipping those that another shard is taking. Repeatable: yes.
with me as materialized (
    select id from {schema}.shard where id = %(shard)s for no key update
),
free as materialized (
    select queue, slot from {schema}.slot
     where queue = %(queue)s and shard is null order by slot limit %(n)s for update skip locked
)
update {schema}.slot s set shard = me.id from me, free
 where s.queue = free.queue and s.slot = free.slot
returning s.slot
