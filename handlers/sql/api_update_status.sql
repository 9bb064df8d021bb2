-- What a run says of itself under a key: fields that are null stay as they are, and the word before goes into the history.
-- No row: no such run in the environment. A repetition adds itself to the history, as in the original.
-- Locks: the row. Rides: job_run_pkey, run_status_pkey. Repeatable: the state is the same, the history one longer.
insert into {schema}.run_status as s (run_id, key, label, state, data)
select r.id, %(key)s, coalesce(%(label)s, %(key)s), %(state)s, %(data)s
  from {schema}.job_run r where r.id = %(run)s and r.environment_id = %(environment)s
on conflict (run_id, key) do update
   set label = coalesce(%(label)s, s.label), state = coalesce(%(state)s, s.state), data = coalesce(%(data)s, s.data),
       history = s.history || jsonb_build_array(
           jsonb_strip_nulls(jsonb_build_object('label', s.label, 'state', s.state)) ||
           case when s.data is null then '{}' else jsonb_build_object('data', s.data) end),
       updated_at = now()
returning key, label, state, data, history
