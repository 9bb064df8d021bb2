-- Makes an environment of a project. Locks: the unique index entries. Repeatable: no, the slug is taken.
insert into {schema}.environment (id, organization_id, project_id, slug, type, api_key_hash, api_key_sealed)
values (%(id)s, %(organization)s, %(project)s, %(slug)s, %(type)s, %(hash)s, %(sealed)s)
