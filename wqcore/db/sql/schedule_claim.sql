-- Takes ticks: a row if they are ours, none when another keeper was faster or the schedule was changed or paused.
-- Promises: together with schedule_fire in one transaction, each tick makes its jobs once. last_tick never goes back.
-- Locks: the row of the schedule. Rides: schedule_pkey. Repeatable: yes, it then takes nothing.
update {schema}.schedule s
   set last_tick = coalesce(%(tick)s::timestamptz, s.last_tick), next_tick = %(next)s::timestamptz,
       last_error = case when %(tick)s::timestamptz is null then s.last_error end
 where s.name = %(name)s and s.updated_at = %(version)s::timestamptz and s.paused_at is null
   and s.next_tick is not distinct from %(seen)s::timestamptz
   and (s.last_tick is null or %(tick)s::timestamptz is null or s.last_tick < %(tick)s::timestamptz)
returning s.name
