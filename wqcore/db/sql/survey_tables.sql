-- Rows, size and last vacuum of the tables that a backlog or an old snapshot makes grow; partitions of history as one.
-- Rides: nothing; statistics, and the size of each file. Waits for whoever changes a table's definition. Repeatable: yes.
select case when starts_with(relname, 'history') then 'history' else relname end as name,
       sum(n_live_tup)::bigint as live_rows, sum(n_dead_tup)::bigint as dead_rows,
       sum(pg_total_relation_size(relid))::bigint as bytes,
       extract(epoch from now() - max(greatest(last_vacuum, last_autovacuum)))::float8 as vacuum_age_s
  from pg_stat_user_tables
 where schemaname = {schema_literal}
   and (relname in ('job', 'claim', 'shard', 'slot', 'process') or starts_with(relname, 'history'))
 group by 1 order by 1
