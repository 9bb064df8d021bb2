-- The schedules that this keeper fires and whose tick is near or not computed yet, oldest first; always at least one
--   row, for the time. Those of the API belong to every keeper, others to those whose program declares them.
-- Rides: schedule_next. Locks nothing. Repeatable: yes.
select now(), due.*
  from (select) one
  left join lateral (
    select s.name, s.cron, s.every_s, s.timezone, s.backfill_s, s.last_tick, s.next_tick, s.updated_at
      from {schema}.schedule s
     where s.paused_at is null and (s.next_tick <= now() + %(ahead_s)s * interval '1 second' or s.next_tick is null)
       and (s.source = 'api' or s.name = any(%(declared)s::text[])) and s.name <> all(%(held)s::text[])
     order by s.next_tick nulls first, s.name limit %(n)s) due on true
