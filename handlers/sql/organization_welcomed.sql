-- Records that an organization has its welcome. Locks: the organization. Rides: organization_pkey. Repeatable: yes.
update {schema}.organization set welcomed_at = now()
 where id = %(id)s and welcomed_at is null
