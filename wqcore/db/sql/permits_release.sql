-- A shard gives permits up and wakes those that want one.
-- Promises: fenced, also against an older session of the same shard (shard_session.sql).
--   `is_current` is 0 for one of those, and nothing was released.
-- Locks: the shard's row, then the permits. Repeatable: yes.
with me as materialized (
    select id from {schema}.shard
     where id = %(shard)s and started_at = timestamptz '2000-01-01 00:00:00+00' + %(session)s * interval '1 microsecond'
       for no key update
),
surplus as (
    delete from {schema}.permit p using me
     where p.shard = me.id and p.queue = %(queue)s and p.permit = any(%(permits)s::bigint[]) and p.permit >= %(total)s
),
freed as (
    update {schema}.permit p set shard = null from me
     where p.shard = me.id and p.queue = %(queue)s and p.permit = any(%(permits)s::bigint[]) and p.permit < %(total)s
    returning p.permit
)
select (select count(*) from me) as is_current, pg_notify(%(channel)s, 'slots')
