-- Adds or changes a schedule; a row with its source if anything was written.
-- Promises: what is unchanged stays as it is, so that a start of a master loses no missed tick. A new time begins to tick
--   after this moment. What was set by the API is not changed by what code or configuration declare.
-- Rides: schedule_pkey. Repeatable: yes.
insert into {schema}.schedule as s (name, source, kind, args, cron, every_s, timezone, backfill_s, options, updated_at)
values (%(name)s, %(source)s, %(kind)s, %(args)s::json, %(cron)s::text, %(every_s)s::float8, %(timezone)s,
        %(backfill_s)s::float8, %(options)s::jsonb, clock_timestamp())
on conflict (name) do update
   set (source, kind, args, cron, every_s, timezone, backfill_s, options, last_error, updated_at, next_tick)
     = (excluded.source, excluded.kind, excluded.args, excluded.cron, excluded.every_s, excluded.timezone,
        excluded.backfill_s, excluded.options, null, clock_timestamp(),
        case when (s.cron, s.every_s, s.timezone) is distinct from (excluded.cron, excluded.every_s, excluded.timezone)
             then null else s.next_tick end)
 where (excluded.source = 'api' or s.source <> 'api')
   and (s.source, s.kind, s.args::jsonb, s.cron, s.every_s, s.timezone, s.backfill_s, s.options) is distinct from
       (excluded.source, excluded.kind, excluded.args::jsonb, excluded.cron, excluded.every_s, excluded.timezone,
        excluded.backfill_s, excluded.options)
returning s.source
