-- Deletes a bite of jobs that wait, and of finished ones from the history, without a trace.
-- Promises: a held job is left. Asked with a revision, a job that has changed or ended since is left too; with
--   revision -2 only its history row is meant, with -1 either.
-- Against a turn that began before: as control_cancel.sql, the shard is told that the jobs are gone.
-- Rides: job_pkey, claim_pkey, history_id. Locks: jobs in id order, without waiting. Repeatable: yes.
with held as materialized (
    select distinct unnest(newest.ids) as id from {schema}.shard s
     cross join lateral (select ids from {schema}.claim c where c.shard = s.id order by c.turn desc limit 1) newest
),
asked as materialized (
    select * from unnest(%(ids)s::bigint[], %(revisions)s::bigint[]) as a (id, revision)
),
seen as materialized (
    select j.id, h.id is not null as held
      from asked a join {schema}.job j on j.id = a.id and a.revision in (-1, j.revision) left join held h on h.id = j.id
),
waiting as materialized (
    select j.id from seen s join {schema}.job j on j.id = s.id where not s.held
     order by j.id for update of j skip locked
),
deleted as (
    delete from {schema}.job j using waiting w where j.id = w.id returning j.id, j.queue, j.run_at
),
answered as (
    delete from {schema}.cancel_request c using deleted d where c.job = d.id
),
erased as (
    delete from {schema}.history h
     where h.id = any(array(select a.id from asked a where a.revision < 0 and a.id not in (select id from seen)))
    returning h.id
),
told as materialized (
    select pg_notify(q.channel, g.payload) from {schema}.queue q join (
        select queue, 'gone:' || string_agg(id::text, ',') as payload from (
            select id, queue, (row_number() over (partition by queue order by id) - 1) / 300 as part from deleted
             where run_at is null or run_at < now() + interval '1 minute') parts group by queue, part
    ) g on g.queue = q.name
)
select (select count(*) from deleted) + (select count(*) from erased) as changed, 0 as cancelling,
       (select count(*) from seen) - (select count(*) from waiting) as running,
       (select count(*) from asked a where a.revision >= 0 and a.id not in (select id from seen)
           and exists (select from {schema}.history h where h.id = a.id)) as finished,
       0 as taken, (select count(*) from told) as told
