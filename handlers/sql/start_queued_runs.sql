-- Enqueues startRun for the oldest queued runs of a queue, as many as it has places.
-- Promises: it only asks; startRun decides by taking the place. The job key keeps one waiting startRun a run. Its mode is
--   replace, not unsafe_dedupe: a startRun that has just found no place is unfinished until its acknowledgement, and to
--   leave it at that one would leave the run queued beside a free place.
-- Locks: the waiting startRun jobs of these runs. Rides: job_queue_pkey, job_run_queued. Repeatable: yes.
with oldest as materialized (
    select r.id from {schema}.job_run r
     where r.queue_id = %(queue)s and r.status = 'QUEUED'
     order by r.queued_at, r.id
     limit (select coalesce(max(q.max_jobs - q.job_count), 0) from {schema}.job_queue q
             where q.id = %(queue)s and q.job_count < q.max_jobs)
)
select {wqcore}.enqueue('startRun', json_build_object('id', o.id), job_key => 'start-' || o.id) as job from oldest o
