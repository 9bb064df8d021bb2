-- An endpoint with those who own it, and the key that opens it.
-- Rides: endpoint's, environment's and project's primary keys. Locks: none. Repeatable: yes.
select e.id, e.slug, e.url, e.environment_id, v.project_id, v.organization_id, v.api_key_sealed
  from {schema}.endpoint e
  join {schema}.environment v on v.id = e.environment_id
 where e.id = %(id)s
