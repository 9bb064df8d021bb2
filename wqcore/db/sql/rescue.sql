-- Second half of a rescue, with a snapshot taken after the fence: gives the jobs of a dead shard back.
-- Promises: jobs that had started are charged an attempt and a death and run again now, or are discarded when either is
--   used up; the rest of the claim is untouched (or gets a death only, when nobody could see what had started).
-- Rides: claim_pkey, slot_shard, job_pkey. Locks: jobs in id order. Repeatable: a second rescue finds no claim;
--   the attempt guard keeps a job from being charged twice.
with newest as materialized (
    select ids from {schema}.claim where shard = %(shard)s order by turn desc limit 1
),
dropped as (
    delete from {schema}.claim where shard = %(shard)s
),
freed as (
    update {schema}.slot set shard = null where shard = %(shard)s
),
charged as materialized (
    select j.id, j.attempt + 1 >= j.max_attempts as no_attempts, j.deaths + 1 >= %(deaths_max)s as poison
      from unnest(%(started_ids)s::bigint[], %(started_attempts)s::bigint[]) as s (id, attempt)
      join {schema}.job j on j.id = s.id and j.attempt = s.attempt
     order by j.id
       for update of j
),
ended as (
    delete from {schema}.job j using charged c where j.id = c.id and (c.no_attempts or c.poison)
    returning j.*, c.poison
),
kept as (
    insert into {schema}.history (id, queue, kind, outcome, priority, attempt, max_attempts, deaths, shard, serial_key,
                                  job_key, created_at, attempted_at, finished_at, args, metadata, errors)
    select id, queue, kind, 'discarded', priority, attempt + 1, max_attempts, deaths + 1, %(shard)s, serial_key,
           job_key, created_at, null, now(), args, metadata,
           coalesce(errors, '[]') || jsonb_build_object('attempt', attempt + 1, 'at', now(), 'error', %(reason)s::text
               || case when poison then ' (discarded as poison after ' || (deaths + 1) || ' deaths)' else '' end)
      from ended where %(keep)s
),
again as (
    update {schema}.job j
       set attempt = attempt + 1, deaths = deaths + 1, run_at = now(),
           errors = coalesce(errors, '[]')
               || jsonb_build_object('attempt', attempt + 1, 'at', now(), 'error', %(reason)s::text)
      from charged c where j.id = c.id and not (c.no_attempts or c.poison)
    returning j.id
),
rest as (
    update {schema}.job j set deaths = deaths + 1
      from newest where %(suspect_rest)s and j.id = any(newest.ids) and j.id not in (select id from charged)
)
select (select count(*) from again) as again, (select count(*) from ended) as ended,
       coalesce((select cardinality(ids) from newest), 0) as held, pg_notify(%(channel)s, 'slots due')
