-- Which day partitions of history exist.
select c.relname from pg_inherits i
  join pg_class c on c.oid = i.inhrelid join pg_class p on p.oid = i.inhparent
  join pg_namespace n on n.oid = p.relnamespace
 where n.nspname = %(schema)s and p.relname in ('history_completed', 'history_cancelled', 'history_discarded')
   and c.relname ~ '_\d{8}$'
