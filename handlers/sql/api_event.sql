-- An event and the runs that it started, one row a run, or one with nulls.
-- A run is found by its dispatcher, job and event: job_run has no index on the event alone, which every run would pay for.
-- Rides: event_record_event_id_environment_id_key, event_dispatcher_environment_id_key_key,
--   job_run_dispatcher_id_job_id_event_id_key. Repeatable: yes.
select e.event_id, e.name, e.created_at, greatest(e.created_at, e.delivered_at, e.cancelled_at) as updated_at,
       r.id, r.status, r.started_at, r.completed_at
  from {schema}.event_record e
  left join (
        select d.id, d.environment_id, d.target_id as job_id from {schema}.event_dispatcher d where d.kind = 'JOB_VERSION'
        union all
        select d.id, d.environment_id, j.job_id
          from {schema}.event_dispatcher d join {schema}.dynamic_trigger_job j on j.dynamic_trigger_id = d.target_id
         where d.kind = 'DYNAMIC_TRIGGER'
        union all
        select 'invoke', v.environment_id, v.job_id from {schema}.job_version v group by v.environment_id, v.job_id
       ) d join {schema}.job_run r on r.dispatcher_id = d.id and r.job_id = d.job_id
    on d.environment_id = e.environment_id and r.event_id = e.id
 where e.event_id = %(event)s and e.environment_id = %(environment)s
 order by r.created_at, r.id
