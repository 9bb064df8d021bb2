-- A connection that a run may use, with its integration; none when it is gone or disabled.
-- Locks: none. Rides: connection_pkey. Repeatable: reads only.
select c.id, c.organization_id, c.integration_id, c.account_id, c.issued_at, c.expires_at, now() as now,
       c.refresh_token_sealed is not null and i.token_url is not null as can_refresh,
       i.slug, i.title, i.scopes, i.created_at, i.token_url
  from {schema}.connection c join {schema}.integration i on i.id = c.integration_id
 where c.id = %(id)s and c.enabled
