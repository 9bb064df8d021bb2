-- A service that an organization's jobs or sources use, by slug. Whoever registers several does it in the order of slugs.
-- Locks: the integration's row. Rides: integration_organization_id_slug_key. Repeatable: yes.
insert into {schema}.integration (id, organization_id, slug, title, auth_source)
values (%(id)s, %(organization)s, %(slug)s, %(title)s, %(auth_source)s)
on conflict (organization_id, slug) do update set auth_source = excluded.auth_source
returning id
