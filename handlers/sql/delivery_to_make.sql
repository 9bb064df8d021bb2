-- A stored request with all that its endpoint needs to handle it; none when it is delivered already.
-- The connection is the newest of the source's integration and account. Rides: http_source_delivery_pkey and primary keys.
-- Locks: none. Repeatable: yes.
select d.id, d.environment_id, d.url, d.method, d.headers, d.body, e.url as endpoint_url, v.api_key_sealed,
       s.id as source_id, s.key, s.params, s.channel_data, s.metadata, s.registration_key, s.account_id,
       t.slug as dynamic_trigger_slug, x.value_sealed as secret_sealed,
       c.access_token_sealed, c.scopes, c.token_url
  from {schema}.http_source_delivery d
  join {schema}.trigger_source s on s.id = d.source_id
  join {schema}.endpoint e on e.id = s.endpoint_id
  join {schema}.environment v on v.id = d.environment_id
  left join {schema}.dynamic_trigger t on t.id = s.dynamic_trigger_id
  left join {schema}.secret x on x.id = s.secret_id
  left join lateral (
    select c.access_token_sealed, c.scopes, i.token_url
      from {schema}.connection c
      join {schema}.integration i on i.id = c.integration_id and i.auth_source = 'HOSTED'
     where c.integration_id = s.integration_id and c.enabled and c.account_id is not distinct from s.account_id
     order by c.created_at desc, c.id desc limit 1
  ) c on true
 where d.id = %(id)s and d.delivered_at is null
