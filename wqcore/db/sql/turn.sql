-- The turn: acknowledges what is finished and claims what is next, in one statement.
-- Promises: nothing is written unless this shard still has its row; only jobs at the acknowledged revision are deleted;
--   the new claim names everything the shard holds afterwards; at most n ready and n due rows are claimed.
-- Rides: shard_pkey, job_pkey (deletes), job_ready and job_due (one range per lane, read in the order of the lanes and
--   only until n rows are found), claim_pkey.
-- Locks: the shard's row, then job rows. Rescue waits for the former; complete_tx (FOR KEY SHARE) does not.
-- Repeatable: yes. Deleted jobs stay deleted, and what a lost reply claimed is claimed again.
-- Zero rows back means: fenced.
with me as materialized (
    select id, case when %(durable)s then '' else set_config('synchronous_commit', 'off', true) end as commit_mode,
           case when %(durable)s then pg_current_xact_id()::text::bigint end as xid,
           now() + %(keep_hours)s::float8 * interval '1 hour' as expires_at
      from {schema}.shard where id = %(shard)s for no key update
),
done as (
    -- One array and no join (connect.py says why). `done_ids` goes up, so the place of an id in it is found by halving.
    delete from {schema}.job j
     using me
     where j.id = any(%(done_ids)s::bigint[])
       and j.revision = coalesce((%(done_revisions)s::bigint[])[width_bucket(j.id, %(done_ids)s::bigint[])], 0)
    returning j.id, j.queue, j.kind, j.priority, j.attempt, j.max_attempts, j.deaths, j.serial_key, j.job_key,
              j.unique_key, j.created_at, j.args, j.metadata, j.errors,
              coalesce((%(done_ago_us)s::bigint[])[width_bucket(j.id, %(done_ids)s::bigint[])], 0) as ago_us
),
kept as (
    insert into {schema}.history (id, queue, kind, outcome, priority, attempt, max_attempts, deaths, shard, serial_key,
                                  job_key, unique_key, created_at, attempted_at, finished_at, expires_at, xid, args,
                                  metadata, errors)
    select d.id, queue, kind, 'completed', priority, attempt + 1, max_attempts, deaths, %(shard)s, serial_key, job_key,
           unique_key, created_at, now() - ago_us * interval '1 microsecond', now(),
           me.expires_at, me.xid, args, metadata, errors
      from done d, me where %(keep_hours)s::float8 > 0
),
ready as (
    select j.*
      from me
     cross join unnest(%(lane_slots)s::bigint[], %(lane_priorities)s::bigint[], %(lane_after)s::bigint[])
                as lane (slot, priority, after)
     cross join lateral (
        select id, slot, priority, kind, revision, attempt, max_attempts, deaths, serial_key, run_at, created_at, args,
               metadata
          from {schema}.job
         where queue = %(queue)s and slot = lane.slot::smallint and priority = lane.priority::smallint
           and run_at is null and (id + 0) > lane.after
           and id not in (select unnest(%(exclude)s::bigint[]))
           and (serial_key is null or serial_key not in (select unnest(%(busy_keys)s::text[])))
         order by (id + 0) limit %(n)s
     ) j
     limit %(n)s
),
due as (
    select j.*
      from me
     cross join unnest(%(lane_slots)s::bigint[], %(lane_priorities)s::bigint[], %(due_after_us)s::bigint[],
                       %(due_after_id)s::bigint[]) as lane (slot, priority, after_us, after_id)
     cross join lateral (
        select id, slot, priority, kind, revision, attempt, max_attempts, deaths, serial_key, run_at, created_at, args,
               metadata
          from {schema}.job
         where queue = %(queue)s and slot = lane.slot::smallint and priority = lane.priority::smallint
           and run_at is not null and run_at <= now()
           and (run_at, id) > (timestamptz '2000-01-01 00:00:00+00' + lane.after_us * interval '1 microsecond',
                               lane.after_id)
           and id not in (select unnest(%(exclude)s::bigint[]))
           and (serial_key is null or serial_key not in (select unnest(%(busy_keys)s::text[])))
         order by run_at, id limit %(n)s
     ) j
     limit %(n)s
),
next as materialized (select * from ready union all select * from due),
claimed as (
    insert into {schema}.claim (shard, turn, ids)
    select me.id, %(turn)s, %(held)s::bigint[] || array(select id from next)
      from me where %(changed)s or exists (select from next)
    returning turn
),
dropped as (
    delete from {schema}.claim c using claimed
     where c.shard = %(shard)s and c.turn >= %(since)s and c.turn < claimed.turn
)
select n.*, (select count(*) from done) as done_count, (select count(*) from claimed) as claimed_count
  from me left join next n on true
