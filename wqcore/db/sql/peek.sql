-- Looks without touching: is there work for this shard, is its lease alive, does it have its share, what was changed?
-- Promises: writes and locks nothing, so an idle queue costs no WAL.
-- Rides: job_ready and job_due, a bounded probe per lane; shard_pkey, slot_pkey, permit_pkey, claim_pkey.
-- Repeatable: yes. Times come as the shard's connection decodes them: microseconds since 2000.
-- `late` asks whether a row between the floor and the cursor is unclaimed: one whose transaction committed late.
-- `due_late` is the oldest time of such a row with a time between floor and cursor: its transaction committed late, or it was
--   changed to a time before the cursor. Rows that are gone stay in the index as long as anybody's snapshot sees them, so
--   only a look that may take longer reads from the beginning; `due_bytes`, the size of that index, tells which may.
-- Jobs of busy keys are left out of all of these: they are read again once their key has room.
-- `gap_priority` finds a priority that has work but no lane yet.
with lane as materialized (
    select slot::smallint, priority::smallint, after,
           timestamptz '2000-01-01 00:00Z' + due_us * interval '1 us' as due_after, due_id
      from unnest(%(lane_slots)s::bigint[], %(lane_priorities)s::bigint[], %(lane_after)s::bigint[],
                  %(due_after_us)s::bigint[], %(due_after_id)s::bigint[]) as l (slot, priority, after, due_us, due_id)
),
gap as materialized (
    select slot::smallint, above::smallint, below::smallint
      from unnest(%(slots)s::bigint[]) as slot
     cross join unnest(%(gap_above)s::bigint[], %(gap_below)s::bigint[]) as g (above, below)
),
held as materialized (select unnest(%(exclude)s::bigint[]) as id),
busy as materialized (select unnest(%(busy_keys)s::text[]) as key)
select exists (select from {schema}.shard where id = %(shard)s) as alive,
       (select count(*) from {schema}.shard where queue = %(queue)s) as shards,
       (select count(*) from {schema}.slot where queue = %(queue)s and shard is null) as free_slots,
       (select count(*) from {schema}.slot where queue = %(queue)s and shard = %(shard)s) as own_slots,
       (select count(*) from {schema}.permit where queue = %(queue)s) as permits,
       (select count(*) from {schema}.permit where queue = %(queue)s and shard is null) as free_permits,
       q.paused_at is not null as paused,
       q.limits::text as limits,
       q.keep_hours::text as keep_hours,
       exists (select from {schema}.cancel_request where queue = %(queue)s) as cancels,
       -- the newest id that was drawn; a sequence that nobody has drawn from shows the first one as its last value
       (select last_value - (not is_called)::integer from {schema}.job_id_seq) as sequence,
       now() as now_us,
       pg_snapshot_xmin(pg_current_snapshot())::text::int8 as oldest_xid,
       pg_snapshot_xmax(pg_current_snapshot())::text::int8 as next_xid,
       exists (select from lane l cross join lateral (
                    select from {schema}.job
                     where queue = %(queue)s and slot = l.slot and priority = l.priority and run_at is null
                       and (id + 0) > l.after and id not in (select id from held)
                       and (serial_key is null or serial_key not in (select key from busy))
                     order by (id + 0) limit 1) j) as ready,
       exists (select from lane l cross join lateral (
                    select from {schema}.job
                     where queue = %(queue)s and slot = l.slot and priority = l.priority and run_at is null
                       and (id + 0) > %(floor)s and (id + 0) <= l.after and id not in (select id from held)
                       and (serial_key is null or serial_key not in (select key from busy))
                     order by (id + 0) limit 1) j) as late,
       exists (select from lane l cross join lateral (
                    select from {schema}.job
                     where queue = %(queue)s and slot = l.slot and priority = l.priority and run_at is not null
                       and run_at <= now() and (run_at, id) > (l.due_after, l.due_id)
                       and id not in (select id from held)
                       and (serial_key is null or serial_key not in (select key from busy))
                     order by run_at, id limit 1) j) as due,
       (select min(j.run_at) from lane l cross join lateral (
            select run_at from {schema}.job
             where queue = %(queue)s and slot = l.slot and priority = l.priority and run_at is not null
               and run_at >= timestamptz '2000-01-01 00:00Z' + %(due_floor_us)s::int8 * interval '1 us'
               and (run_at, id) <= (l.due_after, l.due_id) and id not in (select id from held)
               and (serial_key is null or serial_key not in (select key from busy))
             order by run_at, id limit 1) j) as due_late,
       (select (extract(epoch from min(j.run_at) - now()) * 1000000)::bigint
          from lane l cross join lateral (
            select run_at from {schema}.job
             where queue = %(queue)s and slot = l.slot and priority = l.priority and run_at is not null
               and run_at > now()
             order by run_at, id limit 1) j) as next_due_us,
       greatest(
           (select max(j.priority) from gap g cross join lateral (
                select priority from {schema}.job
                 where queue = %(queue)s and slot = g.slot and run_at is null
                   and priority < g.below and priority > g.above
                 order by priority desc, (id + 0) limit 1) j),
           (select max(j.priority) from gap g cross join lateral (
                select priority from {schema}.job
                 where queue = %(queue)s and slot = g.slot and run_at is not null
                   and priority < g.below and priority > g.above
                 order by priority desc, run_at, id limit 1) j)) as gap_priority,
       pg_relation_size($_${schema}.job_due$_$::regclass) as due_bytes
  from (select) as one left join {schema}.queue q on q.name = %(queue)s
