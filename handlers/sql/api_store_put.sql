-- Writes the value of a key. Locks: its row. Rides: stored_value_pkey. Repeatable: yes.
insert into {schema}.stored_value (environment_id, key, value) values (%(environment)s, %(key)s, %(value)s)
on conflict (environment_id, key) do update set value = excluded.value, updated_at = now()
