-- Recurring jobs whose last tick failed, and those that are overdue though nobody paused them.
select name, last_error is not null as failed,
       extract(epoch from now() - next_tick)::float8 as overdue_s
  from {schema}.schedule where paused_at is null order by name
