-- A dispatcher, by environment and key, enabled. Locks: its row. Rides: event_dispatcher_environment_id_key_key.
-- Repeatable: yes.
insert into {schema}.event_dispatcher (id, environment_id, key, kind, target_id, events, source, payload_filter,
                                       context_filter, manual)
values (%(id)s, %(environment)s, %(key)s, %(kind)s, %(target)s, %(events)s, %(source)s, nullif(%(payload)s::jsonb, 'null'),
        nullif(%(context)s::jsonb, 'null'), %(manual)s)
on conflict (environment_id, key) do update
   set kind = excluded.kind, target_id = excluded.target_id, events = excluded.events, source = excluded.source,
       payload_filter = excluded.payload_filter, context_filter = excluded.context_filter, manual = excluded.manual,
       enabled = true
returning id
