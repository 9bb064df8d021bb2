-- Size, dead rows and vacuums of the tables of the schema.
select s.relname as table, coalesce(c.reloptions, '{}') as options, s.n_live_tup as live, s.n_dead_tup as dead,
       pg_table_size(s.relid) as table_bytes,
       extract(epoch from now() - greatest(s.last_vacuum, s.last_autovacuum))::float8 as vacuumed_s
  from pg_stat_all_tables s join pg_class c on c.oid = s.relid where s.schemaname = {schema_literal} order by 1
