-- Writes the outcome of jobs that end without completing: discarded and cancelled.
-- Promises: fenced like the turn; the row leaves `job` and enters `history` in one statement.
-- Rides: shard_pkey, job_pkey. Locks: the shard's row, then the jobs. Repeatable: yes.
with me as materialized (
    select id from {schema}.shard where id = %(shard)s for no key update
),
done as (
    delete from {schema}.job j
     using me, unnest(%(ids)s::bigint[], %(revisions)s::bigint[], %(ago_us)s::bigint[], %(outcomes)s::text[],
                      %(errors)s::text[]) as f (id, revision, ago_us, outcome, error)
     where j.id = f.id and j.revision = f.revision
    returning j.*, f.ago_us, f.outcome, f.error
),
kept as (
    insert into {schema}.history (id, queue, kind, outcome, priority, attempt, max_attempts, deaths, shard, serial_key,
                                  job_key, created_at, attempted_at, finished_at, args, metadata, errors)
    select id, queue, kind, outcome, priority, attempt + 1, max_attempts, deaths, %(shard)s, serial_key, job_key,
           created_at, now() - ago_us * interval '1 microsecond', now(), args, metadata,
           case when jsonb_array_length(errors) >= %(errors_kept)s then errors - 0 else coalesce(errors, '[]') end
               || (error::jsonb || jsonb_build_object('at', now()))
      from done where outcome = any(%(keep)s::text[])
)
select me.id, (select count(*) from done) from me
