-- The environments of the organization's project of that slug, production first.
-- Locks: none. Rides: project_organization_id_slug_key, environment_project_id_slug_key. Repeatable: reads only.
select e.slug, e.type, e.api_key_sealed
  from {schema}.project p join {schema}.environment e on e.project_id = p.id
 where p.organization_id = %(organization)s and p.slug = %(slug)s
 order by e.type desc, e.slug
