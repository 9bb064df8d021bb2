-- A missing connection with its integration, and the connection that would resolve it, if there is one by now.
-- Locks: none. Rides: missing_connection_pkey, connection_integration_id_idx. Repeatable: reads only.
select m.id, m.environment_id, m.account_id, m.resolved_at, i.slug, i.title, i.scopes, i.created_at, i.token_url,
       (select c.id from {schema}.connection c
         where c.integration_id = m.integration_id and c.organization_id = m.organization_id
           and c.account_id is not distinct from m.account_id and c.enabled
         order by c.created_at desc limit 1) as connection_id
  from {schema}.missing_connection m join {schema}.integration i on i.id = m.integration_id
 where m.id = %(id)s
