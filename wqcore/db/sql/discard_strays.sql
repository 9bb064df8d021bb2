-- Ends jobs that nobody will ever read: by hand or by a broken program they were written into a queue that the database
-- does not know, or into a slot that their queue does not have. They are discarded, with the reason.
-- Promises: none that is younger than grace_s, because its queue may be on its way; at most n.
-- Rides: job_ready and job_due, one probe for each queue that has jobs and one for its slots; no row of a good job is read.
-- Locks: the jobs, those that somebody else has locked are left. Repeatable: yes.
with recursive walk (queue) as (
    select least((select queue from {schema}.job where run_at is null order by queue limit 1),
                 (select queue from {schema}.job where run_at is not null order by queue limit 1))
    union all
    select least((select j.queue from {schema}.job j where j.run_at is null and j.queue > w.queue order by j.queue limit 1),
                 (select j.queue from {schema}.job j where j.run_at is not null and j.queue > w.queue order by j.queue limit 1))
      from walk w where w.queue is not null
),
lost as materialized (
    select j.id, q.name is null as unknown
      from walk w left join {schema}.queue q on q.name = w.queue
     cross join lateral (
        (select id, created_at from {schema}.job
          where run_at is null and queue = w.queue and slot >= coalesce(q.slots, 0)
          order by slot limit %(n)s)
        union all
        (select id, created_at from {schema}.job
          where run_at is not null and queue = w.queue and slot >= coalesce(q.slots, 0)
          order by slot limit %(n)s)) j
     where j.created_at < now() - %(grace_s)s * interval '1 second'
     limit %(n)s
),
locked as materialized (
    select j.id, l.unknown from lost l join {schema}.job j on j.id = any(array[l.id]) order by j.id for update of j skip locked
),
ended as (
    delete from {schema}.job j using locked l where j.id = any(array[l.id]) returning j as job, j.queue, j.slot, j.attempt, l.unknown
),
kept as (
    insert into {schema}.history
    select k.* from ended e cross join lateral {schema}.ending(
        e.job, 'discarded', e.attempt, null, null, jsonb_build_object('error', case when e.unknown
            then 'the database knows no queue ' || quote_literal(e.queue)
            else 'queue ' || quote_literal(e.queue) || ' has no slot ' || e.slot end), null, 10) as k
)
select count(*) from ended
