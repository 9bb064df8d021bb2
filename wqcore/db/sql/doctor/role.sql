-- What the connected user may do in the schema, by one right that only that part needs.
select current_user as who, r.rolsuper as is_superuser,
       pg_has_role(n.nspowner, 'usage') as owns,
       has_table_privilege(shard.oid, 'insert') as may_run,
       has_column_privilege(job.oid, 'args', 'insert') as may_insert,
       has_column_privilege(job.oid, 'kind', 'select') as may_watch,
       pg_has_role('pg_read_all_stats', 'usage') as sees_sessions
  from pg_roles r, pg_namespace n
  join pg_class shard on shard.relnamespace = n.oid and shard.relname = 'shard'
  join pg_class job on job.relnamespace = n.oid and job.relname = 'job'
 where r.rolname = current_user and n.nspname = {schema_literal}
