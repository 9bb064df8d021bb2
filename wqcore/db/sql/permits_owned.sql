-- The permits that this shard owns in the table: repairs a take whose reply was lost. Locks nothing. Repeatable: yes.
select permit from {schema}.permit where queue = %(queue)s and shard = %(shard)s order by permit
