-- A master's heartbeat, with what its workers run for the operator and for a rescue by others; whether somebody has asked it
-- to drain.
-- Rides: process_pkey. Repeatable: yes; re-creates the row that another keeper removed while we were frozen.
insert into {schema}.process (id, host, pid, queue_group, version, report)
values (%(process)s, %(host)s, %(pid)s, %(group)s, %(version)s, %(report)s::jsonb)
on conflict (id) do update set beat_at = now(), report = excluded.report
returning drain_asked_at is not null
