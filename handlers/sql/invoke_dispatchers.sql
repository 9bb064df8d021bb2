-- Makes the runs of dispatchers for events, numbered, and enqueues their startRun; a row for each n whose dispatcher and
-- event exist in one environment.
-- Promises: one run a (dispatcher, job, event), numbered on from the job's last without a gap. There is no `on conflict`: when
--   a dispatcher is invoked twice for an event at one moment, the later one waits for the counter, fails on
--   job_run_dispatcher_id_job_id_event_id_key and so gives its numbers back; asked again it finds the run.
-- Locks: the counters of the jobs in the order of their ids. Rides: event_dispatcher_pkey, event_record_pkey, job_alias_pkey,
--   job_run_dispatcher_id_job_id_event_id_key. Repeatable: yes, without effect.
with asked as materialized (
    select * from unnest(%(dispatchers)s::text[], %(events)s::text[], %(runs)s::text[]) with ordinality as t (dispatcher, event, run, n)
), invoked as materialized (
    select a.n, a.run, d.id, d.kind, d.target_id, d.environment_id, e.id as event_id, e.account_id, e.is_test,
           d.enabled and e.cancelled_at is null as is_open
      from asked a
      join {schema}.event_dispatcher d on d.id = a.dispatcher
      join {schema}.event_record e on e.id = a.event and e.environment_id = d.environment_id
), target as (
    select i.*, i.target_id as job_id from invoked i where i.is_open and i.kind = 'JOB_VERSION'
     union all
    select i.*, t.job_id from invoked i join {schema}.dynamic_trigger_job t on t.dynamic_trigger_id = i.target_id
     where i.is_open and i.kind = 'DYNAMIC_TRIGGER'
), single as (
    select distinct on (t.id, t.job_id, t.event_id) t.* from target t order by t.id, t.job_id, t.event_id, t.n
), due as materialized (
    select s.*, v.id as version_id, v.endpoint_id, v.queue_id, row_number() over (partition by s.n order by s.job_id) as nth_of_n,
           row_number() over (partition by s.job_id order by s.n) as nth_of_job
      from single s
      join {schema}.job_alias a on a.job_id = s.job_id and a.environment_id = s.environment_id and a.name = 'latest'
      join {schema}.job_version v on v.id = a.version_id and v.enabled
     where not exists (select from {schema}.job_run r
                        where r.dispatcher_id = s.id and r.job_id = s.job_id and r.event_id = s.event_id
                       offset 0)  -- keeps it a probe of the index; as a join it became a hash of all runs
), wanted as (
    select d.job_id, count(*) as runs from due d group by d.job_id
), number as (
    insert into {schema}.run_counter as c (job_id, last_number)
    select w.job_id, w.runs from wanted w order by w.job_id
    on conflict (job_id) do update set last_number = c.last_number + excluded.last_number
    returning c.job_id, c.last_number
), made as (
    insert into {schema}.job_run (id, number, job_id, version_id, environment_id, endpoint_id, queue_id, event_id,
                                  dispatcher_id, account_id, is_test)
    select d.run || case when d.nth_of_n > 1 then '_' || d.nth_of_n else '' end, c.last_number - w.runs + d.nth_of_job,
           d.job_id, d.version_id, d.environment_id, d.endpoint_id, d.queue_id, d.event_id, d.id, d.account_id, d.is_test
      from due d join number c on c.job_id = d.job_id join wanted w on w.job_id = d.job_id
     order by d.n, d.nth_of_n
    returning id
), started as materialized (
    select {wqcore}.enqueue('startRun', json_build_object('id', m.id)) from made m
)
select i.n, i.is_open, (select count(*) from started) as runs from invoked i
