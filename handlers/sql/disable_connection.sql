-- Disables a connection whose grant was refused, unless its token has changed since.
-- Locks: the connection. Rides: connection_pkey. Repeatable: yes.
update {schema}.connection set enabled = false
 where id = %(id)s and token_version = %(seen)s
