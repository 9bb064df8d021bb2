-- Marks events as delivered and enqueues events.invokeDispatcher for each (event, dispatcher) of the pairs.
-- Promises: only the one that turns an event's delivered_at from null to a time enqueues; a cancelled one stays undelivered.
-- Locks: the events in the order of their ids. Rides: event_record_pkey. Repeatable: yes, without effect.
with open as materialized (
    select e.id from {schema}.event_record e
     where e.id = any (%(events)s::text[]) and e.delivered_at is null and e.cancelled_at is null
     order by e.id for no key update
), delivered as (
    update {schema}.event_record e set delivered_at = now() from open o where e.id = o.id
    returning e.id
), invoked as materialized (
    select {wqcore}.enqueue('events.invokeDispatcher', json_build_object('id', p.dispatcher, 'eventRecordId', d.id))
      from unnest(%(pair_events)s::text[], %(pair_dispatchers)s::text[]) as p (event, dispatcher)
      join delivered d on d.id = p.event
)
select count(*) as invoked from invoked
