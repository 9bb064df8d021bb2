-- Enqueues the tick of each active schedule whose tick is over and has no unfinished job; how many there were.
-- Promises: a schedule outlives its jobs. A tick that is being delivered is left alone: its schedule is locked, or has its
--   next tick by then (the condition is tested again on the newest row). A job too many would find that its tick is over.
-- Locks: the schedules, in id order, then the job keys. Rides: the partial index on next_tick, job_job_key. Repeatable: yes.
with lost as materialized (
    select s.id, s.environment_id, s.next_tick, s.last_tick
      from {schema}.schedule_source s
     where s.active and s.next_tick <= now()
       and not exists (select from {wqcore}.job j where j.job_key = ('scheduled:' || s.id) collate "C")
     order by s.id limit 1000
       for no key update of s skip locked
)
select count({wqcore}.enqueue('events.deliverScheduled',
           json_build_object('id', id, 'payload',
               json_strip_nulls(json_build_object('ts', next_tick, 'lastTimestamp', last_tick))),
           serial_key => 'scheduler-' || environment_id, job_key => 'scheduled:' || id, job_key_mode => 'unsafe_dedupe'))
       as revived
  from lost
