-- The endpoint of a slug, new or with another URL. Locks: its row. Rides: endpoint_environment_id_slug_key. Repeatable: yes.
insert into {schema}.endpoint (id, environment_id, slug, url) values (%(id)s, %(environment)s, %(slug)s, %(url)s)
on conflict (environment_id, slug) do update set url = excluded.url
returning *
