-- A shard gives slots up; jobs of theirs that still run stay in its claim, and the next owner leaves them out.
-- Promises: fenced, also against an older session of the same shard (shard_session.sql).
--   `is_current` is 0 for one of those, and nothing was released.
-- Locks: the shard's row, then the slots. Repeatable: yes.
with me as materialized (
    select id from {schema}.shard
     where id = %(shard)s and started_at = timestamptz '2000-01-01 00:00:00+00' + %(session)s * interval '1 microsecond'
       for no key update
),
freed as (
    update {schema}.slot s set shard = null from me
     where s.shard = me.id and s.queue = %(queue)s and s.slot = any(%(slots)s::bigint[])
    returning s.slot
)
select (select count(*) from me) as is_current, pg_notify(%(channel)s, 'slots')
