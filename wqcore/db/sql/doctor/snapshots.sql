-- What keeps vacuum from removing dead rows, the oldest first: transactions, prepared ones, replication slots, standbys.
-- Sessions of other users are blank for who is no member of pg_read_all_stats.
select 'session' as what, a.pid::text as id, a.usename as who, coalesce(a.application_name, '') as program,
       coalesce(a.state, '') as state, extract(epoch from now() - a.xact_start)::float8 as age_s,
       greatest(age(a.backend_xmin), age(a.backend_xid)) as age_xids
  from pg_stat_activity a
 where (a.backend_xmin is not null or a.backend_xid is not null) and a.pid <> pg_backend_pid()
   and a.backend_type not in ('autovacuum worker', 'walsender')
union all
select 'prepared transaction', p.gid, p.owner, '', '', extract(epoch from now() - p.prepared)::float8, age(p.transaction)
  from pg_prepared_xacts p
union all
select 'replication slot', r.slot_name, '', coalesce(r.plugin, ''), case when r.active then 'active' else 'inactive' end, null,
       greatest(age(r.xmin), age(r.catalog_xmin))
  from pg_replication_slots r where r.xmin is not null or r.catalog_xmin is not null
union all
select 'standby', w.pid::text, w.usename, coalesce(w.application_name, ''), coalesce(w.state, ''), null, age(w.backend_xmin)
  from pg_stat_replication w where w.backend_xmin is not null
 order by 7 desc nulls last limit 20
