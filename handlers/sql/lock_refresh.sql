-- Takes the right to refresh the connection's token, for as long as this session has it; false when another one has.
-- Promises: it is free again when the session ends, however it ends. Locks: the advisory lock. Repeatable: once per unlock.
select pg_try_advisory_lock(hashtextextended('refresh:' || %(id)s, 0)) as locked
