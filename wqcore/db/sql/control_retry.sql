-- Makes a bite of jobs run now: those that wait for a time, and those that are finished, which come back from the history
-- with the same id, one attempt more, no deaths, and their errors. Held ones are left.
-- Promises: a job comes back once, whoever asks at the same time (the rows of the history are locked, and the id is a
--   primary key); its history row goes in the same statement. One whose job key or unique key another unfinished job
--   has by now stays where it is (taken). A request to cancel it from before is forgotten.
-- The revision of one that comes back is one that it never had: an acknowledgement of its former run that is sent again
--   after a lost reply must not end the new one.
-- Its id lies behind the cursors and floors of the shards, so it gets a run_at; so does a waiting one, whose revision
--   stays: if a turn that began before has claimed it, that is the run that was asked for.
-- Rides: job_pkey, claim_pkey, history_id. Locks: jobs without waiting, then history rows, each in id order.
-- Repeatable: yes.
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
hastened as (
    update {schema}.job j set run_at = now() from waiting w where j.id = w.id and j.run_at > now() returning j.queue
),
ended as materialized (
    select h.* from {schema}.history h
     where h.id = any(array(select a.id from asked a where a.revision < 0 and a.id not in (select id from seen)))
     order by h.id for update
),
back as (
    insert into {schema}.job (id, queue, slot, priority, run_at, kind, attempt, max_attempts, revision, serial_key,
                              job_key, unique_key, created_at, args, metadata, errors)
    select e.id, e.queue,
           case when e.serial_key is null then floor(random() * q.slots)::smallint
                else {schema}.slot_of(e.serial_key, q.slots) end,
           e.priority, now(), e.kind, least(e.attempt, 999), least(greatest(e.max_attempts, e.attempt + 1), 1000),
           1000000 + pg_current_xact_id()::text::bigint %% 1000000000, e.serial_key, e.job_key, e.unique_key,
           e.created_at, e.args, e.metadata, e.errors
      from ended e join {schema}.queue q on q.name = e.queue order by e.id
    on conflict do nothing
    returning id, queue
),
gone as (
    delete from {schema}.history h where h.id = any(array(select id from back))
),
answered as (
    delete from {schema}.cancel_request c using back b where c.job = b.id
),
told as materialized (
    select pg_notify(q.channel, g.payload) from {schema}.queue q join (
        select queue, 'due back:' || string_agg(id::text, ',') as payload from (
            select id, queue, (row_number() over (partition by queue order by id) - 1) / 300 as part from back) parts
         group by queue, part
        union
        select queue, 'due' from hastened
    ) g on g.queue = q.name
)
select (select count(*) from waiting) + (select count(*) from back) as changed, 0 as cancelling,
       (select count(*) from seen) - (select count(*) from waiting) as running,
       (select count(*) from asked a where a.revision >= 0 and a.id not in (select id from seen)
           and exists (select from {schema}.history h where h.id = a.id)) as finished,
       (select count(*) from ended) - (select count(*) from back) as taken, (select count(*) from told) as told
