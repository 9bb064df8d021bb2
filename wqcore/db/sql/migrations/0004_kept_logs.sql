-- Lines that a run has logged, kept with the job that it completed; those of a failed run are with its error. One
-- transaction; docs/howto/logs-and-traces.md tells when lines are kept.

alter table {schema}.history add column log json;

-- As before, with the lines. The default keeps the statements of workers of the release before valid beside it.
drop function {schema}.ending({schema}.job, text, integer, bigint, timestamptz, jsonb, json, integer);
create function {schema}.ending(
    j {schema}.job, p_outcome text, p_attempt integer, p_shard bigint, p_attempted_at timestamptz, p_error jsonb,
    p_output json, p_errors_kept integer, p_log json default null
) returns setof {schema}.history
language sql stable as $fn$
    select j.id, j.queue, j.kind, p_outcome, j.priority, p_attempt::smallint, j.max_attempts, j.deaths, p_shard,
           j.serial_key, j.job_key, j.unique_key, j.created_at, p_attempted_at, now(),
           now() + k.hours * interval '1 hour', pg_current_xact_id()::text::bigint, j.args,
           j.metadata,
           case when p_error is null then j.errors
                when jsonb_array_length(j.errors) >= p_errors_kept then j.errors - 0
                else coalesce(j.errors, '[]') end || case when p_error is null then '[]'
                                                          else p_error || jsonb_build_object('at', now()) end,
           p_output, p_log
      from (select coalesce((select (q.keep_hours ->> p_outcome)::float8 from {schema}.queue q where q.name = j.queue),
                            24) as hours) k
     where k.hours > 0
$fn$;

revoke all on all functions in schema {schema} from public;
