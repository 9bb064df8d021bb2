-- Jobs in these slots that another shard of the queue still holds: the new owner of a slot must not start them, nor a
-- job of their serial key, until the old owner's claim has dropped them.
-- Rides: claim_pkey, job_pkey. Locks nothing. Repeatable: yes.
select j.id, j.slot, j.serial_key
  from {schema}.shard s
 cross join lateral (select ids from {schema}.claim c where c.shard = s.id order by c.turn desc limit 1) newest
 cross join lateral unnest(newest.ids) as held (id)
  join {schema}.job j on j.id = any(array[held.id])
 where s.queue = %(queue)s and s.id <> %(shard)s and j.slot = any(%(slots)s::bigint[])
