-- Writes the outcome of jobs that end otherwise than by completing without an output: discarded, cancelled, completed
-- with an output or with lines of its log.
-- Promises: fenced like the turn; the row leaves `job` and enters `history` in one statement.
-- Rides: shard_pkey, job_pkey. Locks: the shard's row, then the jobs. Repeatable: yes.
with me as materialized (
    select id from {schema}.shard where id = %(shard)s for no key update
),
done as (
    delete from {schema}.job j
     using me, unnest(%(ids)s::bigint[], %(revisions)s::bigint[], %(ago_us)s::bigint[], %(outcomes)s::text[],
                      %(errors)s::text[], %(outputs)s::text[], %(started)s::boolean[], %(logs)s::text[])
               as f (id, revision, ago_us, outcome, error, output, started, log)
     where j.id = any(array[f.id]) and j.revision = f.revision
    returning j as job, j.id, j.attempt, f.ago_us, f.outcome, f.error, f.output, f.started, f.log
),
answered as (
    delete from {schema}.cancel_request c using done where c.job = done.id
),
kept as (
    insert into {schema}.history
    select e.* from done cross join lateral {schema}.ending(
        job, outcome, attempt + started::integer, %(shard)s,
        case when started then now() - ago_us * interval '1 microsecond' end, error::jsonb, output::json,
        %(errors_kept)s, log::json) as e
)
select me.id, (select count(*) from done) from me
