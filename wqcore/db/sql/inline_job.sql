-- One job as a turn returns it (the columns of Row), for a run in the caller's own transaction.
-- Rides: job_pkey. Locks nothing. Repeatable: yes.
select id, slot, priority, kind, revision, attempt, max_attempts, deaths, serial_key,
       (extract(epoch from run_at - timestamptz '2000-01-01 00:00:00+00') * 1000000)::bigint,
       (extract(epoch from created_at - timestamptz '2000-01-01 00:00:00+00') * 1000000)::bigint,
       convert_to(args::text, 'UTF8'), convert_to(metadata::text, 'UTF8')
  from {schema}.job where id = %(id)s
