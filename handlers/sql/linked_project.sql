-- What a project deploys: the branch of the repository that it is linked to; and whether its first deployment is made.
-- Locks: none. Rides: project_link_pkey, repository_pkey, deployment_project_id_idx. Repeatable: reads only.
select l.project_id, l.branch, l.endpoint_id, r.id as repository_id, r.full_name,
       exists (select from {schema}.deployment d where d.project_id = l.project_id and d.initial) as is_deployed
  from {schema}.project_link l join {schema}.repository r on r.id = l.repository_id
 where l.project_id = %(project)s and l.unlinked_at is null and r.removed_at is null
