-- The next outcomes after a position, in the order of the transactions that wrote them, and how far that is final.
-- Promises: `upto` is the first transaction that may still write, or the end of the window if that comes first; of all
--   before it nothing can appear later, so a reader that goes on from there has missed nothing. `expired` is up to which
--   transaction rows may have been dropped before they were read, in the same snapshot.
-- A window of transactions bounds what is read and sorted; rows of one transaction are split by id.
-- Rides: history_xid of each partition, a few pages of each. Locks nothing. Repeatable: yes.
with edge as materialized (
    select pg_snapshot_xmin(pg_current_snapshot())::text::bigint as xmin, (select max(xid) from {schema}.expired) as expired
),
found as materialized (
    select h.xid, h.id, h.kind, h.queue, h.outcome, h.priority, h.attempt, h.serial_key, h.job_key, h.created_at,
           h.attempted_at, h.finished_at, h.errors -> -1 ->> 'error' as error, h.output
      from {schema}.history h
     where h.xid >= %(xid)s::bigint and h.xid < (select least(xmin, %(upto)s::bigint) from edge)
       and (h.xid > %(xid)s::bigint or h.id > %(id)s::bigint)
       and (%(kinds)s::text[] is null or h.kind = any(%(kinds)s::text[]))
       and (%(queues)s::text[] is null or h.queue = any(%(queues)s::text[]))
       and (%(outcomes)s::text[] is null or h.outcome = any(%(outcomes)s::text[]))
     order by h.xid, h.id limit %(n)s
)
select e.xmin, e.expired, f.* from edge e left join found f on true order by f.xid, f.id
