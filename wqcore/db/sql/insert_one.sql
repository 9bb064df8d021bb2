-- Inserts one job and, unless the channel is null, wakes its shard.
-- Promises: the transaction has its xid before it draws an id (`xid`), which is what lets a shard conclude from the
--   oldest running xid that no lower id can still appear.
-- Repeatable: no; a repeated insert makes another job.
with xid as materialized (select pg_current_xact_id() as id),
added as (
    insert into {schema}.job (queue, slot, priority, run_at, kind, max_attempts, serial_key, metadata, args)
    select %(queue)s, %(slot)s, %(priority)s, %(run_at)s::timestamptz, %(kind)s, %(max_attempts)s, %(serial_key)s,
           %(metadata)s::json, %(args)s::json
      from xid where xid.id is not null
    returning id
)
select id, case when %(channel)s::text is not null then pg_notify(%(channel)s::text, %(payload)s) end from added
