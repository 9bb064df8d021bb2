-- Completes a job inside its handler's own transaction.
-- Promises: zero rows back when this run has lost its shard; else the job is in `history` if the transaction commits.
-- Locks: the shard's row FOR KEY SHARE (the turn, FOR NO KEY UPDATE, does not wait for it; rescue does), then the job.
-- Repeatable: within one transaction, yes: the second time deletes nothing.
with me as materialized (
    select id from {schema}.shard where id = %(shard)s for key share
),
done as (
    delete from {schema}.job j using me where j.id = %(id)s and j.revision = %(revision)s
    returning j.*
),
kept as (
    insert into {schema}.history (id, queue, kind, outcome, priority, attempt, max_attempts, deaths, shard, serial_key,
                                  job_key, created_at, attempted_at, finished_at, args, metadata, errors)
    select id, queue, kind, 'completed', priority, attempt + 1, max_attempts, deaths, %(shard)s, serial_key, job_key,
           created_at, now() - %(ago_us)s * interval '1 microsecond', clock_timestamp(), args, metadata, errors
      from done where %(keep)s
)
select me.id, (select count(*) from done) from me
