-- The environment that an API key opens, by the key's hash. Rides: environment_api_key_hash_key. Repeatable: yes.
select id, organization_id, project_id, slug, type from {schema}.environment where api_key_hash = %(hash)s
