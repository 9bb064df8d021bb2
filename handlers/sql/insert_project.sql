-- Makes a project; nothing when the organization has one of that slug, for which it waits if it is being made.
-- Locks: the unique index entry. Rides: project_organization_id_slug_key. Repeatable: yes.
insert into {schema}.project (id, organization_id, name, slug)
values (%(id)s, %(organization)s, %(name)s, %(slug)s)
on conflict (organization_id, slug) do nothing
returning id
