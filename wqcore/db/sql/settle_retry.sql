-- Writes the outcome of jobs that run again: failed attempts and snoozes.
-- Promises: fenced like the turn; a job changed meanwhile (other revision) is left alone.
-- Rides: shard_pkey, job_pkey. Locks: the shard's row, then the jobs in id order.
-- Repeatable: yes; the attempt guard keeps a re-sent statement from adding an error twice.
with me as materialized (
    select id from {schema}.shard where id = %(shard)s for no key update
),
failed as materialized (
    select j.id, f.attempt, f.delay_s, f.error
      from me
     cross join unnest(%(ids)s::bigint[], %(revisions)s::bigint[], %(attempts)s::bigint[], %(delays_s)s::float8[],
                       %(errors)s::text[]) as f (id, revision, attempt, delay_s, error)
      join {schema}.job j on j.id = f.id and j.revision = f.revision
     where f.error is null or j.attempt < f.attempt
     order by j.id
       for update of j
),
changed as (
    update {schema}.job j
       set attempt = f.attempt,
           run_at = now() + f.delay_s * interval '1 second',
           errors = case when f.error is null then j.errors
                         when jsonb_array_length(j.errors) >= %(errors_kept)s then (j.errors - 0) || (f.error::jsonb || jsonb_build_object('at', now()))
                         else coalesce(j.errors, '[]') || (f.error::jsonb || jsonb_build_object('at', now())) end
      from failed f where j.id = f.id
    returning j.id
)
select me.id, (select count(*) from changed) from me
