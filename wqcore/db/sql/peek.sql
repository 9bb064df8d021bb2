-- Looks without touching: is there work for this shard, is its lease alive, does it have its share of slots?
-- Promises: writes and locks nothing, so an idle queue costs no WAL.
-- Rides: job_ready and job_due, a bounded probe per lane; shard_pkey, slot_pkey, claim_pkey.
-- Repeatable: yes.
-- `late` asks whether a row between the floor and the cursor is unclaimed: one whose transaction committed late.
-- `gap_priority` finds a priority that has work but no lane yet.
select exists (select from {schema}.shard where id = %(shard)s) as alive,
       (select count(*) from {schema}.shard where queue = %(queue)s) as shards,
       (select count(*) from {schema}.slot where queue = %(queue)s and shard is null) as free_slots,
       coalesce((select paused_at is not null from {schema}.queue where name = %(queue)s), false) as paused,
       (select last_value from {schema}.job_id_seq) as sequence,
       (extract(epoch from now() - timestamptz '2000-01-01 00:00:00+00') * 1000000)::bigint as now_us,
       pg_snapshot_xmin(pg_current_snapshot())::text::bigint as oldest_xid,
       pg_snapshot_xmax(pg_current_snapshot())::text::bigint as next_xid,
       exists (select from unnest(%(lane_slots)s::bigint[], %(lane_priorities)s::bigint[], %(lane_after)s::bigint[])
                           as lane (slot, priority, after)
                cross join lateral (
                    select from {schema}.job
                     where queue = %(queue)s and slot = lane.slot::smallint and priority = lane.priority::smallint
                       and run_at is null and (id + 0) > lane.after
                       and id not in (select unnest(%(exclude)s::bigint[]))
                     order by (id + 0) limit 1) j) as ready,
       exists (select from unnest(%(lane_slots)s::bigint[], %(lane_priorities)s::bigint[], %(lane_after)s::bigint[])
                           as lane (slot, priority, after)
                cross join lateral (
                    select from {schema}.job
                     where queue = %(queue)s and slot = lane.slot::smallint and priority = lane.priority::smallint
                       and run_at is null and (id + 0) > %(floor)s and (id + 0) <= lane.after
                       and id not in (select unnest(%(exclude)s::bigint[]))
                     order by (id + 0) limit 1) j) as late,
       exists (select from unnest(%(slots)s::bigint[]) as lane (slot)
                cross join lateral (
                    select from {schema}.job
                     where queue = %(queue)s and slot = lane.slot::smallint and run_at is not null and run_at <= now()
                       and id not in (select unnest(%(exclude)s::bigint[]))
                     order by run_at, id limit 1) j) as due,
       (select (extract(epoch from min(j.run_at) - now()) * 1000000)::bigint
          from unnest(%(slots)s::bigint[]) as lane (slot)
         cross join lateral (
            select run_at from {schema}.job
             where queue = %(queue)s and slot = lane.slot::smallint and run_at is not null and run_at > now()
             order by run_at, id limit 1) j) as next_due_us,
       (select max(j.priority)
          from unnest(%(slots)s::bigint[]) as lane (slot)
         cross join unnest(%(gap_above)s::bigint[], %(gap_below)s::bigint[]) as gap (above, below)
         cross join lateral (
            select priority from {schema}.job
             where queue = %(queue)s and slot = lane.slot::smallint and run_at is null
               and priority < gap.below::smallint and priority > gap.above::smallint
             order by priority desc, (id + 0) limit 1) j) as gap_priority
