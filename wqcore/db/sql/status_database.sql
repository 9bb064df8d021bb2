-- How the database fares, for `wqcore status`, as far as the role may see it; rows and dead rows are PostgreSQL's estimates.
-- `hidden` counts sessions of other users, whose transactions only members of pg_read_all_stats (or pg_monitor) see.
-- Rides: the statistics views; a file size of each partition. Locks nothing. Repeatable: yes.
select current_setting('server_version') as version,
       current_setting('max_connections')::integer as connections_max,
       a.connections, a.hidden, a.oldest_transaction_s,
       pg_notification_queue_usage() as notify_queue,
       t.n_live_tup as jobs_estimate, t.n_dead_tup as dead_estimate,
       extract(epoch from now() - greatest(t.last_vacuum, t.last_autovacuum))::float8 as vacuumed_s,
       pg_total_relation_size(t.relid) as job_bytes,
       (select coalesce(sum(pg_total_relation_size(i.inhrelid)), 0)::bigint from pg_inherits i
          join pg_class c on c.oid = i.inhparent join pg_namespace n on n.oid = c.relnamespace
         where n.nspname = {schema_literal} and c.relname = 'history') as history_bytes
  from (select count(*) as connections, count(*) filter (where state is null) as hidden,
               extract(epoch from max(clock_timestamp() - xact_start) filter (where pid <> pg_backend_pid()))::float8
                   as oldest_transaction_s
          from pg_stat_activity where backend_type = 'client backend') a
 cross join pg_stat_user_tables t
 where t.schemaname = {schema_literal} and t.relname = 'job'
