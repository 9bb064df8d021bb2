-- Enqueues startQueuedRuns for the queues that have both places and queued runs; a wake-up whose job was lost is made up for.
-- Locks: none. Rides: job_run_queued. Repeatable: yes; the job key keeps one waiting job a queue.
with starving as materialized (
    select q.id from {schema}.job_queue q
     where q.job_count < q.max_jobs and exists (select from {schema}.job_run r where r.queue_id = q.id and r.status = 'QUEUED')
)
select {wqcore}.enqueue('startQueuedRuns', json_build_object('id', s.id), job_key => 'wake-' || s.id) as job from starving s
