-- Makes an organization. Rides: organization_slug_key. Repeatable: no, each is another one.
insert into {schema}.organization (id, title, slug, email) values (%(id)s, %(title)s, %(slug)s, %(email)s)
returning id, title, slug
