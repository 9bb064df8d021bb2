-- Which day partitions of history exist, and today (UTC).
select c.relname, to_char(now() at time zone 'UTC', 'YYYYMMDD') from pg_inherits i
  join pg_class c on c.oid = i.inhrelid join pg_class p on p.oid = i.inhparent
  join pg_namespace n on n.oid = p.relnamespace
 where n.nspname = %(schema)s and p.relname = 'history' and c.relname ~ '^history_\d{8}$'
