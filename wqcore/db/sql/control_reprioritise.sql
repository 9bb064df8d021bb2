-- Gives a bite of waiting jobs another priority; held ones are left.
-- Promises: each runs as often as it would have. The revision stays: nothing that a run does depends on the priority,
--   so if a turn that began before has claimed the job, that one run and its acknowledgement are right.
-- A ready job gets its time of insert as run_at: in its old lane's index a shard's cursor may be beyond it, and so its
--   place among equals and its age are kept. A time before the cursor is found by the look that `due` asks for.
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
changed as (
    update {schema}.job j set priority = %(priority)s::integer, run_at = coalesce(j.run_at, j.created_at)
      from waiting w where j.id = w.id returning j.queue, j.run_at
),
told as materialized (
    select pg_notify(q.channel, case when c.oldest < now() - interval '5 seconds' then 'due past' else 'due' end)
      from {schema}.queue q join (select queue, min(run_at) as oldest from changed group by queue) c on c.queue = q.name
)
select (select count(*) from changed) as changed, 0 as cancelling,
       (select count(*) from seen) - (select count(*) from waiting) as running,
       (select count(*) from asked a where a.id not in (select id from seen)
           and exists (select from {schema}.history h where h.id = a.id)) as finished,
       0 as taken, (select count(*) from told) as told
