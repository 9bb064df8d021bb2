-- A worker has a new connection: from here on its older ones release nothing. Such a statement can arrive late, held up on
--   its way or in a backend that nobody hears any more, and the worker reads those slots again by then.
-- An update, because that is what a statement sees which has waited for this row: it looks at the row again, but at other
--   tables as they were when it began. The time is only a number here, and always another one.
-- `server` is another text when it is another server, or the same one after a start or a crash: what it had not written to
--   its log, or sent, is gone, and ids may be drawn once more. A crash of one process leaves the time of the postmaster's
--   start as it is, but drops the statistics.
-- Promises: zero rows back mean fenced. Rides: shard_pkey. Locks: the shard's row, and so waits for what is in flight.
-- Repeatable: yes; each begins another session. Once a connection, so an old snapshot does not make it dear.
update {schema}.shard set started_at = greatest(clock_timestamp(), started_at + interval '1 microsecond')
 where id = %(shard)s
returning (extract(epoch from started_at - timestamptz '2000-01-01 00:00:00+00') * 1000000)::bigint as session,
          pg_postmaster_start_time()::text
              || coalesce((select ' ' || stats_reset::text from pg_catalog.pg_stat_bgwriter), '') as server
