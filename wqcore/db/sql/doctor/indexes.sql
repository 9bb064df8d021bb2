-- The indexes of the schema, and whether they can be used.
select i.relname as index, x.indisvalid and x.indisready as usable
  from pg_index x join pg_class i on i.oid = x.indexrelid join pg_namespace n on n.oid = i.relnamespace
 where n.nspname = {schema_literal} order by 1
