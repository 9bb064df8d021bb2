-- Removes the repositories of an installation and unlinks their projects.
-- Locks: its repositories, then their links. Rides: repository_installation_id_full_name_key,
--   project_link_repository_id_idx. Repeatable: yes; the times stay those of the first run.
with removed as (
    update {schema}.repository set removed_at = now()
     where installation_id = %(installation)s and removed_at is null
)
update {schema}.project_link l set unlinked_at = now()
  from {schema}.repository r
 where r.installation_id = %(installation)s and l.repository_id = r.id and l.unlinked_at is null
returning l.project_id
