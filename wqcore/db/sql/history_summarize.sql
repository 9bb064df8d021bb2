-- Brings the index history_xid up to the rows written since: a reader of outcomes reads the pages that it does not cover.
-- Measured: 0.3 s for a million rows. Autovacuum does the same once a minute, when a busy queue has written 200 MB.
-- Rides nothing. Locks each partition against vacuum (share update exclusive) for milliseconds. Repeatable: yes.
select sum(brin_summarize_new_values(i.inhrelid)) from pg_inherits i
  join pg_class c on c.oid = i.inhparent join pg_namespace n on n.oid = c.relnamespace
 where n.nspname = {schema_literal} and c.relname = 'history_xid'
