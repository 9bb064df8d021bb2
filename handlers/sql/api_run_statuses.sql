-- What a run has said of itself, oldest key first. Rides: run_status_pkey. Repeatable: yes.
select key, label, state, data, history from {schema}.run_status where run_id = %(run)s order by created_at, key
