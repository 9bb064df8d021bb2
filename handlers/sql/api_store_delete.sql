-- Deletes a key; a row if it was there. Locks: its row. Rides: stored_value_pkey. Repeatable: yes.
delete from {schema}.stored_value where environment_id = %(environment)s and key = %(key)s returning key
