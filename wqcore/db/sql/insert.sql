-- Inserts jobs and wakes their shards, in one statement.
-- Promises: the transaction has its xid before it draws an id (`xid`), which is what lets a shard conclude from the
--   oldest running xid that no lower id can still appear. Ids come back in the order of the arrays.
-- Repeatable: no; a repeated insert makes another job.
with xid as materialized (select pg_current_xact_id() as id),
added as (
    insert into {schema}.job (queue, slot, priority, run_at, kind, max_attempts, serial_key, metadata, args)
    select i.queue, i.slot, i.priority, i.run_at, i.kind, i.max_attempts, i.serial_key, i.metadata::json, i.args::json
      from xid
     cross join unnest(%(queues)s::text[], %(slots)s::smallint[], %(priorities)s::smallint[],
                       %(run_ats)s::timestamptz[], %(kinds)s::text[], %(max_attempts)s::smallint[],
                       %(serial_keys)s::text[], %(metadata)s::text[], %(args)s::text[])
                with ordinality as i (queue, slot, priority, run_at, kind, max_attempts, serial_key, metadata, args, n)
     where xid.id is not null
     order by i.n
    returning id
)
select id from added
