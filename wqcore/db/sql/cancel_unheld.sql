-- Carries out the cancellations whose job nobody holds (any more): its owner gave it back, or died, before it could.
-- Promises: what the function cancel promises; it looks again whether somebody holds the job. Free while nobody has asked
--   for a cancellation. A request is left to the owner for a second first. No row is waited for.
-- Rides: job_pkey, claim_pkey. Locks: jobs in id order. Repeatable: yes.
with left_over as materialized (
    select c.job, c.reason from {schema}.cancel_request c join {schema}.job j on j.id = c.job
     where c.asked_at < now() - interval '1 second' and not {schema}.is_held(j.id, j.queue)
     order by j.id limit 500 for update of j skip locked
)
select count(*) from (select {schema}.cancel(job, reason) as what from left_over) done where what = 'cancelled'
