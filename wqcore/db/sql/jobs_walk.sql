-- The next jobs that match a filter, unfinished and finished, in the order of their ids; or how many there are.
-- Promises: reads at most `scan` rows of each source beyond `after`, so no table is walked in one statement; `edge` is
--   how far it has looked, null at the end. With `ids` only those are read, and `after` and `scan` do not count.
--   The state is the one that the view jobs shows.
-- Rides: job_pkey, history_id; history_ended where only discarded and cancelled ones are wanted (history = 'dead').
-- Locks nothing. Repeatable: yes.
with held as materialized (
    select distinct unnest(newest.ids) as id from {schema}.shard s
     cross join lateral (select ids from {schema}.claim c where c.shard = s.id order by c.turn desc limit 1) newest
),
unfinished as materialized (
    (select * from {schema}.job where id = any(%(ids)s::bigint[]))
    union all
    (select * from {schema}.job where %(ids)s::bigint[] is null and %(unfinished)s::boolean and id > %(after)s
      order by id limit %(scan)s)
),
ended as materialized (
    (select * from {schema}.history where id = any(%(ids)s::bigint[]))
    union all
    (select * from {schema}.history
      where %(ids)s::bigint[] is null and %(history)s::text = 'all' and id > %(after)s order by id limit %(scan)s)
    union all
    select h.* from unnest(array['cancelled', 'discarded']) as o (outcome)
     cross join lateral (
        select * from {schema}.history
         where %(ids)s::bigint[] is null and %(history)s::text = 'dead' and outcome = o.outcome and outcome <> 'completed'
           and id > %(after)s order by id limit %(scan)s) h
),
edge as materialized (
    select min(id) as id from (
        select max(id) as id from unfinished having count(*) >= %(scan)s and %(ids)s::bigint[] is null
        union all
        select max(id) from ended group by case when %(history)s::text = 'dead' then outcome end
        having count(*) >= %(scan)s and %(ids)s::bigint[] is null
    ) full_sources
),
found as (
    select j.id, j.revision, j.kind, j.queue,
           case when h.id is not null then 'running'
                when j.run_at > now() and j.errors is not null then 'retryable'
                when j.run_at > now() then 'scheduled'
                else 'available' end as state,
           j.priority, j.attempt, j.max_attempts, j.deaths, j.serial_key, j.job_key, j.created_at, j.run_at,
           null::timestamptz as attempted_at, null::timestamptz as finished_at, j.args, j.metadata, j.errors,
           null::json as output, null::json as log
      from unfinished j left join held h on h.id = j.id
    union all
    select id, -2, kind, queue, outcome, priority, attempt, max_attempts, deaths, serial_key, job_key, created_at, null,
           attempted_at, finished_at, args, metadata, errors, output, log
      from ended
),
matched as materialized (
    select f.* from found f, edge e
     where f.id <= coalesce(e.id, f.id)
       and (%(kinds)s::text[] is null or kind = any(%(kinds)s::text[]))
       and (%(queues)s::text[] is null or queue = any(%(queues)s::text[]))
       and (%(states)s::text[] is null or state = any(%(states)s::text[]))
       and (%(serial_key)s::text is null or serial_key = %(serial_key)s::text)
       and (%(job_key)s::text is null or job_key = %(job_key)s::text)
       and (%(key)s::text is null or %(key)s::text in (serial_key, job_key))
       and (%(tags)s::text[] is null or (metadata -> 'tags')::jsonb ?& %(tags)s::text[])
       and (%(error)s::text is null or position(%(error)s::text in errors -> -1 ->> 'error') > 0)
       and created_at < coalesce(%(older_at)s::timestamptz, now() - %(older_s)s::float8 * interval '1 second', 'infinity')
       and created_at >= coalesce(%(newer_at)s::timestamptz, now() - %(newer_s)s::float8 * interval '1 second', '-infinity')
       and priority between %(priority_min)s::integer and %(priority_max)s::integer
       and not exists (
            select from unnest(%(paths)s::text[], %(in_metadata)s::boolean[], %(values)s::text[], %(texts)s::text[])
                   as c (path, meta, value, text)
             cross join lateral (select case when c.meta then metadata else args end #> string_to_array(c.path, '.')) v (it)
             where case when c.text is null then v.it::jsonb is distinct from c.value::jsonb
                        else v.it #>> '{}' is distinct from c.text end)
)
select e.id as edge, t.total, m.*, p.fraction, p.note
  from edge e cross join (select count(*) as total from matched) t
  left join lateral (
    select id, revision, kind, queue, state, priority, attempt, max_attempts, deaths, serial_key, job_key, created_at,
           run_at, attempted_at, finished_at, case when %(whole)s::boolean then args end as args,
           case when %(whole)s::boolean then metadata end as metadata,
           case when %(whole)s::boolean then errors end as errors,
           case when %(whole)s::boolean then output end as output,
           case when %(whole)s::boolean then log end as log
      from matched order by id limit %(n)s) m on true
  left join {schema}.progress p on p.job = m.id
 order by m.id
