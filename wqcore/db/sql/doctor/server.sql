-- What kind of server this is, for `wqcore doctor`. Anybody may read it.
select current_setting('server_version_num')::integer as version_num, current_setting('server_version') as version,
       pg_is_in_recovery() as is_standby, pg_backend_pid() as backend_pid, current_user as who,
       current_setting('fsync') as fsync, current_setting('full_page_writes') as full_page_writes,
       current_setting('synchronous_commit') as synchronous_commit,
       current_setting('autovacuum') as autovacuum, current_setting('track_counts') as track_counts,
       current_setting('default_transaction_read_only') as default_transaction_read_only,
       current_setting('default_transaction_isolation') as default_transaction_isolation,
       pg_size_bytes(current_setting('shared_buffers')) as shared_buffers_bytes,
       current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer
           - coalesce(current_setting('reserved_connections', true)::integer, 0) as connections_max,
       inet_server_addr() is not null as over_tcp, (select ssl from pg_stat_ssl where pid = pg_backend_pid()) as tls
