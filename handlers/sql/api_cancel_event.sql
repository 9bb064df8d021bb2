-- Cancels an event that was neither delivered nor cancelled; the event as it then is. Its deliverEvent finds that out.
-- Locks: the event. Rides: event_record_event_id_environment_id_key. Repeatable: yes.
with cancelled as (
    update {schema}.event_record set cancelled_at = now()
     where event_id = %(event)s and environment_id = %(environment)s and delivered_at is null and cancelled_at is null
    returning *
)
select * from cancelled
union all
select * from {schema}.event_record
 where event_id = %(event)s and environment_id = %(environment)s and not exists (select from cancelled)
