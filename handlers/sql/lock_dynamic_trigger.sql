-- A dynamic trigger by the names that its endpoint's code uses, locked: its registrations are made one at a time.
-- Locks: its row. Rides: endpoint_environment_id_slug_key, dynamic_trigger_endpoint_id_slug_type_key. Repeatable: yes.
select t.id, t.slug, t.environment_id, t.endpoint_id, t.register_job_id, v.organization_id
  from {schema}.dynamic_trigger t
  join {schema}.endpoint e on e.id = t.endpoint_id
  join {schema}.environment v on v.id = e.environment_id
 where e.environment_id = %(environment)s and e.slug = %(client)s and t.slug = %(slug)s and t.type = %(type)s
   for no key update of t
