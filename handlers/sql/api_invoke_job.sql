-- The run of a job for the event of its invocation: the one that is there, or a new one, numbered, with its startRun; no row
-- when no version is enabled. `invoke` stands where other runs have their dispatcher.
-- Promises: one run an (event, job): those that invoke with the same key come here one after the other, because the first one
--   still holds the event's unique index entry. Locks: the job's counter.
-- Rides: job_alias_pkey, job_version_pkey, job_run_dispatcher_id_job_id_event_id_key. Repeatable: yes.
with found as materialized (
    select r.id from {schema}.job_run r
     where r.dispatcher_id = 'invoke' and r.job_id = %(job)s and r.event_id = %(event)s
), due as materialized (
    select v.id, v.job_id, v.endpoint_id, v.queue_id
      from {schema}.job_alias a join {schema}.job_version v on v.id = a.version_id and v.enabled
     where a.job_id = %(job)s and a.environment_id = %(environment)s and a.name = 'latest'
       and not exists (select from found)
), number as (
    insert into {schema}.run_counter as c (job_id, last_number) select d.job_id, 1 from due d
    on conflict (job_id) do update set last_number = c.last_number + 1
    returning c.last_number
), made as (
    insert into {schema}.job_run (id, number, job_id, version_id, environment_id, endpoint_id, queue_id, event_id,
                                  dispatcher_id, account_id)
    select %(run)s, n.last_number, d.job_id, d.id, %(environment)s, d.endpoint_id, d.queue_id, %(event)s, 'invoke', e.account_id
      from due d, number n, {schema}.event_record e where e.id = %(event)s
    returning id
), started as materialized (
    select m.id, {wqcore}.enqueue('startRun', json_build_object('id', m.id)) from made m
)
select id from found union all select id from started
