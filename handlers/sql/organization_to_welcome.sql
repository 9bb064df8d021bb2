-- An organization, locked until the end of the transaction, so that it is welcomed once.
-- Locks: the organization. Rides: organization_pkey. Repeatable: reads only.
select id, title, email, welcomed_at from {schema}.organization
 where id = %(id)s for no key update
