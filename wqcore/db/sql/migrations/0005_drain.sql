-- Somebody has asked this master to drain, from whatever host: its keeper reads it with the heartbeat.
alter table {schema}.process add column drain_asked_at timestamptz;
