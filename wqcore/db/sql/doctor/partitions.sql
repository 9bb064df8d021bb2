-- Which day partitions history has, and whether rows fell into the net because theirs was missing.
select array(select c.relname::text from pg_inherits i join pg_class c on c.oid = i.inhrelid
              where i.inhparent = h.oid and c.relname ~ '^history_[0-9]{8}$' order by 1) as days,
       to_char(now() at time zone 'UTC', 'YYYYMMDD') as today,
       to_char(now() at time zone 'UTC' + interval '1 day', 'YYYYMMDD') as tomorrow,
       to_char(now() at time zone 'UTC' + interval '2 days', 'YYYYMMDD') as day_after
  from pg_class h join pg_namespace n on n.oid = h.relnamespace
 where n.nspname = {schema_literal} and h.relname = 'history'
