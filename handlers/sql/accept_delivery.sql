-- Stores a request that came for a source and enqueues its delivery; one row, or none when no such source wants any.
-- A source that waits for its registration is served too: services send a first request while they are being asked.
-- Promises: a stored request has a job. Locks: the new rows. Rides: trigger_source_pkey. Repeatable: no, each call is a request.
with stored as (
    insert into {schema}.http_source_delivery (id, source_id, environment_id, endpoint_id, url, method, headers, body)
    select %(id)s, s.id, s.environment_id, s.endpoint_id, %(url)s, %(method)s, %(headers)s, %(body)s
      from {schema}.trigger_source s
     where s.id = %(source)s and s.channel = 'HTTP'
       and (s.active or exists (select from {schema}.source_event e where e.source_id = s.id and e.wanted))
    returning id, endpoint_id
), queued as materialized (
    select {wqcore}.enqueue('deliverHttpSourceRequest', json_build_object('id', id), serial_key => 'endpoint-' || endpoint_id)
      from stored
)
select id from stored where (select count(*) from queued) > 0
