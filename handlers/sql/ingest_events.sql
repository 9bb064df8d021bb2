-- Writes events that are new in their environment and enqueues their deliverEvent; the records of all, in the order given.
-- Promises: one record an (event id, environment), and one deliverEvent a record, in one transaction. Within one batch the
--   first of an id counts. A record that another transaction commits at the same moment is found by the second branch only
--   when it is visible; the unique index makes this statement wait for it, and the caller asks again for a missing row.
-- Locks: the unique index entries in the order of event ids. Rides: event_record_event_id_environment_id_key.
-- Repeatable: yes.
with given as materialized (
    select n, e.*
      from jsonb_array_elements(%(events)s) with ordinality as t (item, n),
           jsonb_to_record(item) as e (id text, event_id text, name text, source text, payload jsonb, context jsonb,
               source_context jsonb, account_id text, "timestamp" timestamptz, deliver_at timestamptz)
), written as (
    insert into {schema}.event_record (id, event_id, environment_id, name, source, payload, context, source_context,
                                       account_id, "timestamp", deliver_at)
    select distinct on (g.event_id) g.id, g.event_id, %(environment)s, g.name, g.source, coalesce(g.payload, 'null'),
           nullif(g.context, 'null'), nullif(g.source_context, 'null'), g.account_id, coalesce(g."timestamp", now()),
           coalesce(g.deliver_at, now())
      from given g order by g.event_id, g.n
    on conflict (event_id, environment_id) do nothing
    returning *
), queued as materialized (
    select w.id, {wqcore}.enqueue('deliverEvent', json_build_object('id', w.id),
               run_at => case when w.deliver_at > now() then w.deliver_at end)
      from written w where %(deliver)s
)
select n, true as is_new, r.* from given g join written r on r.event_id = g.event_id
 where r.id = g.id and (select count(*) from queued) >= 0
union all
select n, false, r.* from given g join written r on r.event_id = g.event_id where r.id <> g.id
union all
select n, false, r.* from given g join {schema}.event_record r on r.event_id = g.event_id and r.environment_id = %(environment)s
 where not exists (select from written w where w.event_id = g.event_id)
 order by n
