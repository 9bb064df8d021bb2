-- Second half of a rescue, with a snapshot taken after the fence: gives the jobs of a dead shard back.
-- Promises: jobs that had started are charged an attempt and a death and run again now, or are discarded when either is
--   used up (cancelled when somebody had asked for it); the rest of the claim is untouched (or gets a death only, when
--   nobody could see what had started). Then a heartbeat says what had, and it may be old: a job that has left the claim
--   since has snoozed or was given back, and is not charged.
-- Rides: claim_pkey, slot_shard, permit_shard, job_pkey. Locks: jobs in id order. Repeatable: a second rescue finds no
--   claim; the attempt guard keeps a job from being charged twice.
with newest as materialized (
    select ids from {schema}.claim where shard = %(shard)s order by turn desc limit 1
),
dropped as (
    delete from {schema}.claim where shard = %(shard)s
),
freed as (
    update {schema}.slot set shard = null where shard = %(shard)s
),
permitted as (
    update {schema}.permit set shard = null where shard = %(shard)s
),
charged as materialized (
    select j.id, j.attempt + 1 >= j.max_attempts as no_attempts, j.deaths + 1 >= %(deaths_max)s as poison, c.reason
      from unnest(%(started_ids)s::bigint[], %(started_attempts)s::bigint[]) as s (id, attempt)
      join {schema}.job j on j.id = any(array[s.id]) and j.attempt = s.attempt
      left join {schema}.cancel_request c on c.job = any(array[s.id])
     where not %(suspect_rest)s or s.id in (select unnest(ids) from newest)
     order by s.id
       for update of j
),
ended as (
    delete from {schema}.job j using charged c
     where j.id = any(array[c.id]) and (c.no_attempts or c.poison or c.reason is not null)
    returning j as job, j.id, j.attempt, j.deaths, c.poison, c.reason
),
answered as (
    delete from {schema}.cancel_request c using ended where c.job = ended.id
),
kept as (
    insert into {schema}.history
    select e.* from ended cross join lateral {schema}.ending(
        jsonb_populate_record(job, jsonb_build_object('deaths', deaths + 1)),
        case when reason is null then 'discarded' else 'cancelled' end, attempt + 1, %(shard)s, null,
        jsonb_build_object('attempt', attempt + 1, 'error', coalesce(reason || ': ', '') || %(reason)s::text
            || case when poison then ' (discarded as poison after ' || (deaths + 1) || ' deaths)' else '' end),
        null, 10) as e
),
again as (
    update {schema}.job j
       set attempt = attempt + 1, deaths = deaths + 1, run_at = now(),
           errors = coalesce(errors, '[]')
               || jsonb_build_object('attempt', attempt + 1, 'at', now(), 'error', %(reason)s::text)
      from charged c where j.id = any(array[c.id]) and not (c.no_attempts or c.poison or c.reason is not null)
    returning j.id
),
rest as (
    update {schema}.job j set deaths = deaths + 1
      from newest where %(suspect_rest)s and j.id = any(newest.ids) and j.id not in (select id from charged)
)
select (select count(*) from again) as again, (select count(*) from ended) as ended,
       coalesce((select cardinality(ids) from newest), 0) as held, pg_notify(%(channel)s, 'slots due')
