-- Events and the dispatchers that listen for their name and source; a row for each event that exists.
-- Promises: nothing is changed. Locks: none. Rides: event_record_pkey, event_dispatcher_environment_id_source_idx.
-- Repeatable: yes.
select e.id, e.payload, e.context, e.delivered_at is null and e.cancelled_at is null as is_open, d.dispatchers
  from {schema}.event_record e
 cross join lateral (
    select coalesce(jsonb_agg(jsonb_build_array(d.id, d.payload_filter, d.context_filter) order by d.id), '[]') as dispatchers
      from {schema}.event_dispatcher d
     where d.environment_id = e.environment_id and d.source = e.source and e.name = any (d.events)
       and d.enabled and not d.manual
 ) d
 where e.id = any (%(events)s::text[])
