-- Bulk insert. The caller takes its xid first (insert_one.sql says why) and notifies at the end, in the same transaction.
copy {schema}.job (queue, slot, priority, run_at, kind, max_attempts, serial_key, metadata, args) from stdin
