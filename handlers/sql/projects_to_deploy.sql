-- The projects that deploy a branch of a repository.
-- Locks: none. Rides: repository_full_name_idx, project_link_repository_id_idx. Repeatable: reads only.
select l.project_id, l.endpoint_id, r.id as repository_id
  from {schema}.repository r join {schema}.project_link l on l.repository_id = r.id
 where r.full_name = %(repository)s and r.removed_at is null and l.branch = %(branch)s and l.unlinked_at is null
 order by l.project_id
