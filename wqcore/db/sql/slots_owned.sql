-- The slots that this shard owns in the table: repairs a take whose reply was lost. Locks nothing. Repeatable: yes.
select slot from {schema}.slot where queue = %(queue)s and shard = %(shard)s order by slot
