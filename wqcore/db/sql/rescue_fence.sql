-- First half of a rescue, in one transaction with rescue.sql: takes the lease away.
-- Waits for the shard's turn or complete_tx in flight; whatever the shard sends afterwards writes nothing.
delete from {schema}.shard where id = %(shard)s returning queue
