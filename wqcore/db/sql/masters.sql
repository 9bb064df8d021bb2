-- The masters, what each last said of its workers, and whether it was asked to drain; the shards that are registered under
-- each, with their queues and how many jobs each holds.
-- Rides: process (a row a master), shard (a row a worker), claim_pkey. Locks nothing. Repeatable: yes.
select p.id::text, p.host, p.pid, p.queue_group, p.version, p.started_at,
       extract(epoch from now() - p.beat_at)::float8 as beat_age_s, p.drain_asked_at, p.report,
       coalesce((select jsonb_object_agg(s.id::text, jsonb_build_object('queue', s.queue, 'held', coalesce((
                    select cardinality(c.ids) from {schema}.claim c where c.shard = s.id order by c.turn desc limit 1), 0)))
                   from {schema}.shard s where s.process = p.id), '{}') as shards
  from {schema}.process p order by p.host, p.started_at
