-- A machine. Locks: none. Rides: vm_pkey. Repeatable: reads only.
select id, machine_id, app_name, state from {schema}.vm where id = %(id)s
