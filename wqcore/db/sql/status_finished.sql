-- Jobs that ended within the last hour, per outcome, among the `cap` of each outcome with the newest ids; and whether there
-- are more, so that the count is one of some of them.
-- Rides: history_id and history_ended, from their ends. Locks nothing. Repeatable: yes.
select o.outcome, count(*) filter (where h.finished_at > now() - interval '1 hour') as ended, count(*) >= %(cap)s as capped
  from (values ('completed'), ('cancelled'), ('discarded')) as o (outcome)
 cross join lateral (
    (select finished_at from {schema}.history
      where o.outcome = 'completed' and outcome = 'completed' order by id desc limit %(cap)s)
    union all
    (select finished_at from {schema}.history
      where o.outcome <> 'completed' and outcome = o.outcome and outcome <> 'completed' order by id desc limit %(cap)s)
 ) h
 group by o.outcome having count(*) filter (where h.finished_at > now() - interval '1 hour') > 0
