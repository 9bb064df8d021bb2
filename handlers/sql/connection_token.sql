-- The token of a connection and what its refresh needs; none when the organization has no such connection.
-- Locks: none. Rides: connection_pkey. Repeatable: reads only.
select c.id, c.enabled, c.refresh_token_sealed, c.token_version, c.scopes, c.issued_at, c.expires_at, now() as now,
       i.token_url, i.client_id, i.client_secret_sealed
  from {schema}.connection c join {schema}.integration i on i.id = c.integration_id
 where c.id = %(id)s and c.organization_id = %(organization)s
