-- Writes the outcome of jobs that run again: failed attempts and snoozes.
-- Promises: fenced like the turn; a job changed meanwhile (other revision) is left alone. One that may not run again,
--   because somebody asked for its cancellation or a newer job has its job key (max_attempts 0), ends instead.
-- Rides: shard_pkey, job_pkey. Locks: the shard's row, then the jobs in id order.
-- Repeatable: yes, also when another shard runs the job by then (its slot has moved since the reply was lost). A failure
--   has raised the attempt; a snooze has made the job ready later than it was when it was claimed (`ready_us`).
with me as materialized (
    select id from {schema}.shard where id = %(shard)s for no key update
),
failed as materialized (
    select j.id, f.attempt, f.delay_s, f.error, j.max_attempts = 0 as superseded, c.reason
      from me
     cross join unnest(%(ids)s::bigint[], %(revisions)s::bigint[], %(attempts)s::bigint[], %(delays_s)s::float8[],
                       %(errors)s::text[], %(ready_us)s::bigint[]) as f (id, revision, attempt, delay_s, error, ready_us)
      join {schema}.job j on j.id = any(array[f.id]) and j.revision = f.revision
      left join {schema}.cancel_request c on c.job = any(array[f.id])
     where case when f.error is not null then j.attempt < f.attempt
                else coalesce(j.run_at, j.created_at)
                     <= timestamptz '2000-01-01 00:00:00+00' + f.ready_us * interval '1 microsecond' end
     order by f.id
       for update of j
),
ended as (
    delete from {schema}.job j using failed f where j.id = any(array[f.id]) and (f.superseded or f.reason is not null)
    returning j as job, j.id, f.attempt, f.error, f.superseded, f.reason
),
answered as (
    delete from {schema}.cancel_request c using ended where c.job = ended.id
),
kept as (
    insert into {schema}.history
    select e.* from ended cross join lateral {schema}.ending(
        job, case when reason is null and error is not null then 'discarded' else 'cancelled' end, attempt::integer,
        %(shard)s, null,
        coalesce(error::jsonb, jsonb_build_object('error', coalesce(reason, 'replaced by a newer job of its job key'))),
        null, %(errors_kept)s) as e
),
changed as (
    update {schema}.job j
       set attempt = f.attempt,
           run_at = now() + f.delay_s * interval '1 second',
           errors = case when f.error is null then j.errors
                         else case when jsonb_array_length(j.errors) >= %(errors_kept)s then j.errors - 0
                                   else coalesce(j.errors, '[]') end
                              || (f.error::jsonb || jsonb_build_object('at', now())) end
      from failed f where j.id = any(array[f.id]) and not f.superseded and f.reason is null
    returning j.id
)
select me.id, (select count(*) from changed) from me
