-- All schedules, for people, with the masters that declare them. Repeatable: yes.
select s.name, s.source, s.kind, s.args::text, s.cron, s.every_s, s.timezone, s.backfill_s, s.options::text, s.paused_at,
       s.last_tick, s.next_tick, s.last_job, s.last_error, s.created_at, s.updated_at, now(),
       array(select p.host || ':' || p.pid from {schema}.declaration d join {schema}.process p on p.id = d.process
              where d.schedule = s.name order by 1)
  from {schema}.schedule s order by s.name limit %(n)s
