-- Inserts jobs that have a job key or are unique; a row for each: its position, the id, what was done.
-- Promises: what the function insert_keyed promises. Rows are taken in the order given: sort them by key, so that two
--   batches do not lock each other out.
-- Repeatable: yes, for jobs that were not started in between.
select f.position, i.id, i.what
  from unnest(%(queues)s::text[], %(slots)s::bigint[], %(priorities)s::bigint[], %(run_ats)s::timestamptz[],
              %(kinds)s::text[], %(max_attempts)s::bigint[], %(serial_keys)s::text[], %(metadata)s::text[],
              %(args)s::text[], %(job_keys)s::text[], %(modes)s::text[], %(uniques)s::text[], %(channels)s::text[])
       with ordinality as f (queue, slot, priority, run_at, kind, max_attempts, serial_key, metadata, args, job_key, mode,
                             unique_by, channel, position)
 cross join lateral {schema}.insert_keyed(
    f.queue, f.slot::integer, f.priority::integer, f.run_at, f.kind, f.max_attempts::integer, f.serial_key,
    f.metadata::json, f.args::json, f.job_key, f.mode, f.unique_by::jsonb, f.channel) as i
