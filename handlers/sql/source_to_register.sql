-- A source with its secret and its events: what its registration job needs to know.
-- Rides: trigger_source_pkey, source_event_pkey. Locks: none. Repeatable: yes.
select s.id, s.environment_id, s.key, s.channel, s.version, s.params, s.channel_data, s.active, x.value_sealed,
       i.slug as client_id, t.slug as dynamic_trigger_slug,
       coalesce((select jsonb_agg(jsonb_build_object('name', e.name, 'value', e.value, 'registered', e.registered,
                                                     'wanted', e.wanted) order by e.name, e.value)
                   from {schema}.source_event e where e.source_id = s.id), '[]') as events
  from {schema}.trigger_source s
  left join {schema}.secret x on x.id = s.secret_id
  left join {schema}.integration i on i.id = s.integration_id
  left join {schema}.dynamic_trigger t on t.id = s.dynamic_trigger_id
 where s.id = %(id)s
