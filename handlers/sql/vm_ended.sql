-- Records that a machine is stopped or destroyed; what is destroyed stays so.
-- Locks: the vm. Rides: vm_pkey. Repeatable: yes; the time stays that of the first run.
update {schema}.vm set state = %(state)s, state_at = now()
 where id = %(id)s and state not in (%(state)s, 'destroyed')
