-- Carries out the cancellations whose job nobody holds (any more): its owner gave it back, or died, before it could.
-- Promises: what the function cancel promises; it looks again whether somebody holds the job. Free while nobody has asked
--   for a cancellation. A request is left to the owner for a second first. No row is waited for.
-- The claims are read once, and only jobs that were asked for are looked up: asked of every waiting job, is_held() took 0.15 s
--   beside 50 jobs and an old snapshot, and with a backlog it would have outlasted the keeper's own heartbeat.
-- Rides: job_pkey, claim_pkey. Locks: jobs in id order. Repeatable: yes.
with asked as materialized (
    select job, reason from {schema}.cancel_request where asked_at < now() - interval '1 second'
),
held as materialized (
    select unnest(newest.ids) as id from {schema}.shard s
     cross join lateral (select ids from {schema}.claim c where c.shard = s.id order by c.turn desc limit 1) newest
     where exists (select from asked)
),
chosen as materialized (
    select job, reason from asked where job not in (select id from held)
),
left_over as materialized (
    -- one array and no join (connect.py says why)
    select j.id as job from {schema}.job j where j.id = any(array(select job from chosen))
     order by j.id limit 500 for update of j skip locked
)
select count(*) from (select {schema}.cancel(l.job, c.reason) as what from left_over l join chosen c on c.job = l.job) done
 where what = 'cancelled'
