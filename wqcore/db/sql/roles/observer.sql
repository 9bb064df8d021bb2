-- People and programs that watch: states, counts, times and keys. Not what jobs carry or say: args, metadata, outputs,
-- texts of errors, notes of progress and reasons of cancellations can hold personal data and secrets.
grant usage on schema {schema} to {role};
grant select on {schema}.migration, {schema}.queue, {schema}.kind, {schema}.process, {schema}.shard, {schema}.claim,
    {schema}.slot, {schema}.permit, {schema}.declaration, {schema}.expired to {role};
grant select (id, kind, queue, state, priority, attempt, max_attempts, deaths, serial_key, job_key, created_at, run_at,
              attempted_at, finished_at, progress) on {schema}.jobs to {role};
grant select (id, queue, slot, priority, run_at, kind, attempt, max_attempts, deaths, revision, serial_key, job_key,
              unique_key, created_at) on {schema}.job to {role};
grant select (id, queue, kind, outcome, priority, attempt, max_attempts, deaths, shard, serial_key, job_key, unique_key,
              created_at, attempted_at, finished_at, expires_at, xid) on {schema}.history to {role};
grant select (job, queue, asked_at) on {schema}.cancel_request to {role};
grant select (job, fraction, at) on {schema}.progress to {role};
grant select (name, source, kind, cron, every_s, timezone, backfill_s, paused_at, last_tick, next_tick, last_job, created_at,
              updated_at) on {schema}.schedule to {role};
grant select on sequence {schema}.job_id_seq to {role};
