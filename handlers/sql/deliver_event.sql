-- Marks an event as delivered and enqueues events.invokeDispatcher for each of the dispatchers given.
-- Promises: only the one that turns delivered_at from null to a time enqueues; a cancelled event stays undelivered.
-- Locks: the event. Rides: event_record_pkey. Repeatable: yes, without effect.
with delivered as (
    update {schema}.event_record set delivered_at = now()
     where id = %(event)s and delivered_at is null and cancelled_at is null
    returning id
), invoked as materialized (
    select {wqcore}.enqueue('events.invokeDispatcher', json_build_object('id', dispatcher, 'eventRecordId', e.id))
      from delivered e, unnest(%(dispatchers)s::text[]) as dispatcher
)
select count(*) as invoked from invoked
