-- Inserts a job of the schedule for each given metadata; their ids in this order, no row when there is no such schedule.
-- The row is locked before anything is inserted: a row that changes under an UPDATE makes PostgreSQL compute the new
--   values again, and so would insert twice.
-- Locks: the row of the schedule, then what the function enqueue locks. Repeatable: no.
with mine as materialized (
    select s.kind, s.args, s.options from {schema}.schedule s where s.name = %(name)s for update
), jobs as materialized (
    select t.n, {schema}.enqueue(
        kind => m.kind, args => m.args, queue => m.options ->> 'queue',
        priority => (m.options ->> 'priority')::integer, max_attempts => (m.options ->> 'max_attempts')::integer,
        serial_key => m.options ->> 'serial_key', job_key => m.options ->> 'job_key',
        job_key_mode => coalesce(m.options ->> 'job_key_mode', 'replace'),
        metadata => (coalesce(m.options -> 'metadata', '{}') || t.metadata::jsonb)::json) as id
      from mine m cross join unnest(%(metadata)s::text[]) with ordinality as t (metadata, n)
), noted as (
    update {schema}.schedule s set last_job = newest.id
      from (select id from jobs order by n desc limit 1) newest where s.name = %(name)s
)
select id from jobs order by n
