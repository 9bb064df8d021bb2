-- The value of a key. Rides: stored_value_pkey. Repeatable: yes.
select value from {schema}.stored_value where environment_id = %(environment)s and key = %(key)s
