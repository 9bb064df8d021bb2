-- A schedule by environment and key, active. Its next tick stays when its times are as they were, so that a repeated
-- registration neither shifts nor starves it; else it is null, and the caller gives it one.
-- Locks: its row. Rides: schedule_source_environment_id_key_key. Repeatable: yes.
insert into {schema}.schedule_source as s (id, environment_id, dispatcher_id, dynamic_trigger_id, key, type, cron, seconds,
                                           metadata, account_id)
values (%(id)s, %(environment)s, %(dispatcher)s, %(dynamic_trigger)s, %(key)s, %(type)s, %(cron)s, %(seconds)s,
        nullif(%(metadata)s::jsonb, 'null'), %(account)s)
on conflict (environment_id, key) do update
   set dispatcher_id = excluded.dispatcher_id, dynamic_trigger_id = excluded.dynamic_trigger_id, type = excluded.type,
       cron = excluded.cron, seconds = excluded.seconds, metadata = excluded.metadata, account_id = excluded.account_id,
       active = true,
       next_tick = case when s.active and (s.type, s.cron, s.seconds) is not distinct from
                            (excluded.type, excluded.cron, excluded.seconds) then s.next_tick end
returning s.id, s.environment_id, s.cron, s.seconds, s.last_tick, s.next_tick, now() as now
