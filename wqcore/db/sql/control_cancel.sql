-- Cancels a bite of jobs: those that wait end as cancelled, those that are held are left to their owner by a request.
-- Promises: a job is ended or asked for, never both. No row is waited for: one that somebody has locked (he changes or
--   ends it now) gets a request, which its owner or a keeper's sweep carries out, or forgets when the job has ended.
-- Against a turn that began before: it locks no job and may claim one that ends here. Its shard is told that the job is
--   gone and drops it, or cancels its run; if it had completed by then, its acknowledgement finds no row and writes no
--   second outcome.
-- Rides: job_pkey, claim_pkey, history_id. Locks: jobs in id order. Repeatable: yes.
with held as materialized (
    select distinct unnest(newest.ids) as id from {schema}.shard s
     cross join lateral (select ids from {schema}.claim c where c.shard = s.id order by c.turn desc limit 1) newest
),
asked as materialized (
    select * from unnest(%(ids)s::bigint[], %(revisions)s::bigint[]) as a (id, revision)
),
seen as materialized (
    select j.id, j.queue, h.id is not null as held
      from asked a join {schema}.job j on j.id = a.id and a.revision in (-1, j.revision) left join held h on h.id = j.id
),
waiting as materialized (
    select j.id from seen s join {schema}.job j on j.id = s.id where not s.held
     order by j.id for update of j skip locked
),
ended as (
    delete from {schema}.job j using waiting w where j.id = w.id returning j as job, j.id, j.queue, j.run_at, j.attempt
),
answered as (
    delete from {schema}.cancel_request c using ended e where c.job = e.id
),
kept as (
    insert into {schema}.history
    select k.* from ended e cross join lateral {schema}.ending(
        e.job, 'cancelled', e.attempt, null, null, jsonb_build_object('error', %(reason)s::text), null, 10) as k
),
requested as (
    insert into {schema}.cancel_request (job, queue, reason)
    select id, queue, %(reason)s::text from seen s
     where %(running_too)s::boolean and not exists (select from waiting w where w.id = s.id) order by id
    on conflict (job) do nothing
),
told as materialized (
    select pg_notify(q.channel, g.payload) from {schema}.queue q join (
        -- 300 ids of 20 digits fit the 8,000 bytes of a notification; a job that is not due for long, no turn can have
        select queue, 'gone:' || string_agg(id::text, ',') as payload from (
            select id, queue, (row_number() over (partition by queue order by id) - 1) / 300 as part from ended
             where run_at is null or run_at < now() + interval '1 minute') parts group by queue, part
        union
        select queue, 'cancel' from seen s
         where %(running_too)s::boolean and not exists (select from waiting w where w.id = s.id)
    ) g on g.queue = q.name
)
select (select count(*) from waiting) as changed,
       case when %(running_too)s::boolean then (select count(*) from seen) - (select count(*) from waiting) else 0 end
           as cancelling,
       case when %(running_too)s::boolean then 0 else (select count(*) from seen) - (select count(*) from waiting) end
           as running,
       (select count(*) from asked a where a.id not in (select id from seen)
           and exists (select from {schema}.history h where h.id = a.id)) as finished,
       0 as taken, (select count(*) from told) as told
