-- Makes a deployment; nothing when the commit is deployed in the project already, or when it is a second `initial` one.
-- Locks: the unique index entries, in the order of the caller's projects.
-- Rides: deployment_project_id_commit_sha_key, deployment_project_id_idx. Repeatable: yes, returns nothing.
insert into {schema}.deployment (id, project_id, repository_id, branch, commit_sha, initial)
values (%(id)s, %(project)s, %(repository)s, %(branch)s, %(commit)s, %(initial)s)
on conflict do nothing
returning id
