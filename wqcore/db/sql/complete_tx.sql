-- Completes a job inside its handler's own transaction.
-- Promises: zero rows back when this run has lost its shard; else the job is in `history` if the transaction commits.
-- Locks: the shard's row FOR KEY SHARE (the turn, FOR NO KEY UPDATE, does not wait for it; rescue does), then the job.
-- Repeatable: within one transaction, yes: the second time deletes nothing.
with me as materialized (
    select id from {schema}.shard where id = %(shard)s for key share
),
done as (
    delete from {schema}.job j using me where j.id = %(id)s and j.revision = %(revision)s
    returning j as job, j.attempt
),
kept as (
    insert into {schema}.history
    select e.* from done cross join lateral {schema}.ending(
        job, 'completed', attempt + 1, %(shard)s, now() - %(ago_us)s * interval '1 microsecond', null,
        %(output)s::json, 10, %(log)s::json) as e
)
select me.id, (select count(*) from done) from me
