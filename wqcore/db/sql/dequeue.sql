-- Takes a job key back. A waiting job of the key ends as cancelled; one that is held goes on, without key and retries.
-- Returns the id and what became of it; no row: no unfinished job has the key. Repeatable: yes.
with found as materialized (
    select j.id, j.queue, {schema}.is_held(j.id, j.queue) as held from {schema}.job j where j.job_key = %(job_key)s
       for update
),
released as (
    update {schema}.job j set job_key = null, max_attempts = 0 from found f where j.id = f.id and f.held
)
select f.id, case when f.held then 'released' else {schema}.cancel(f.id, 'dequeued by its job key') end from found f
