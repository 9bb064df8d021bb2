-- What endangers every queue of this database, in one row; the schema's version with it.
-- Snapshots of other users' sessions are seen only with pg_read_all_stats; those that are not are counted as hidden.
-- Rides: nothing; views of statistics, one row a session. Locks nothing. Repeatable: yes.
-- `job_ids`: a sequence that nobody has drawn from shows the first id as its last value.
with session as materialized (
    select backend_xmin, xact_start, datname is not null and query = '<insufficient privilege>' as hidden
      from pg_stat_activity
     where (datname = current_database() or datname is null) and pid <> pg_backend_pid()
       and backend_type is distinct from 'autovacuum worker'
),
prepared as materialized (
    select transaction, prepared from pg_prepared_xacts where database = current_database()
)
select (select coalesce(max(version), 0) from {schema}.migration)::integer as version,
       pg_notification_queue_usage() as notify_queue,
       (select last_value - (not is_called)::integer from {schema}.job_id_seq) as job_ids,
       greatest(0, (select extract(epoch from clock_timestamp() - min(since))
                      from (select xact_start as since from session where backend_xmin is not null
                            union all select prepared from prepared) s))::float8 as oldest_snapshot_s,
       greatest(0, (select max(age(held.xid))
                      from (select backend_xmin as xid from session union all select transaction from prepared
                            union all select xmin from pg_replication_slots) held))::bigint as oldest_snapshot_xids,
       (select count(*) from session where hidden) as hidden_sessions,
       (select coalesce(sum(numbackends), 0) from pg_stat_database)::integer as connections,
       current_setting('max_connections')::integer as connections_max
