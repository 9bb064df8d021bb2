-- Stores a refreshed token over the version that it was refreshed from; its life.
-- Promises: of two refreshes of one version only the first is stored. A response without a refresh token or scopes keeps
--   those that there are (RFC 6749 §6). Locks: the connection. Rides: connection_pkey. Repeatable: yes, returns nothing.
update {schema}.connection
   set access_token_sealed = %(access_token)s,
       refresh_token_sealed = coalesce(%(refresh_token)s, refresh_token_sealed),
       scopes = coalesce(%(scopes)s::text[], scopes),
       token_version = token_version + 1,
       issued_at = now(),
       expires_at = now() + make_interval(secs => %(expires_in)s::float8)
 where id = %(id)s and token_version = %(seen)s
returning id, issued_at, expires_at, now() as now
