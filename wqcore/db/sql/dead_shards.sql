-- Shards whose master has not been heard of for longer than dead_after_s, with what its last beat showed as running.
-- Promises: none while the database itself has been up for less than that, when every beat looks old.
-- Locks nothing. Repeatable: yes; the rescue itself decides under the shard's lock.
select s.id, s.queue, p.host, p.pid, coalesce(p.report -> 'shards' -> s.id::text, '{}') as report
  from {schema}.shard s
  left join {schema}.process p on p.id = s.process
 where coalesce(p.beat_at, s.started_at) < now() - %(dead_after_s)s * interval '1 second'
   and pg_postmaster_start_time() < now() - %(dead_after_s)s * interval '1 second'
   and s.process <> %(process)s
 order by s.id
