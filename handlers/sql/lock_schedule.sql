-- A schedule, locked: one tick at a time. Locks: its row. Rides: schedule_source_pkey. Repeatable: yes.
select id, environment_id, dispatcher_id, dynamic_trigger_id, key, cron, seconds, metadata, account_id, active, last_tick,
       next_tick, now() as now
  from {schema}.schedule_source where id = %(id)s for no key update
