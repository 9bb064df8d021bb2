-- Makes the runs of a dispatcher for an event, numbered, and enqueues their startRun; one row, or none when dispatcher or
-- event do not exist.
-- Promises: one run a (dispatcher, job, event), its number one above the job's last. There is no `on conflict`: when the same
--   dispatcher is invoked twice at one moment, the later one waits for the counter, fails on
--   job_run_dispatcher_id_job_id_event_id_key and so gives its number back; asked again it finds the run.
-- Locks: the counters of the jobs in the order of their ids. Rides: event_dispatcher_pkey, event_record_pkey, job_alias_pkey,
--   job_run_dispatcher_id_job_id_event_id_key. Repeatable: yes, without effect.
with invoked as materialized (
    select d.id, d.kind, d.target_id, d.environment_id, e.id as event_id, e.account_id, e.is_test,
           d.enabled and e.cancelled_at is null as is_open
      from {schema}.event_dispatcher d join {schema}.event_record e on e.environment_id = d.environment_id
     where d.id = %(dispatcher)s and e.id = %(event)s
), target as (
    select i.target_id as job_id from invoked i where i.is_open and i.kind = 'JOB_VERSION'
     union all
    select t.job_id from invoked i join {schema}.dynamic_trigger_job t on t.dynamic_trigger_id = i.target_id
     where i.is_open and i.kind = 'DYNAMIC_TRIGGER'
), due as materialized (
    select t.job_id, v.id as version_id, v.endpoint_id, v.queue_id, row_number() over (order by t.job_id) as n
      from target t cross join invoked i
      join {schema}.job_alias a on a.job_id = t.job_id and a.environment_id = i.environment_id and a.name = 'latest'
      join {schema}.job_version v on v.id = a.version_id and v.enabled
     where not exists (select from {schema}.job_run r
                        where r.dispatcher_id = i.id and r.job_id = t.job_id and r.event_id = i.event_id
                       offset 0)  -- keeps it a probe of the index; as a join it became a hash of all runs
), number as (
    insert into {schema}.run_counter as c (job_id, last_number)
    select d.job_id, 1 from due d order by d.job_id
    on conflict (job_id) do update set last_number = c.last_number + 1
    returning c.job_id, c.last_number
), made as (
    insert into {schema}.job_run (id, number, job_id, version_id, environment_id, endpoint_id, queue_id, event_id,
                                  dispatcher_id, account_id, is_test)
    select %(run)s || case when d.n > 1 then '_' || d.n else '' end, c.last_number, d.job_id, d.version_id, i.environment_id,
           d.endpoint_id, d.queue_id, i.event_id, i.id, i.account_id, i.is_test
      from due d join number c on c.job_id = d.job_id cross join invoked i
    returning id
), started as materialized (
    select {wqcore}.enqueue('startRun', json_build_object('id', m.id)) from made m
)
select i.is_open, (select count(*) from started) as runs from invoked i
