-- The cancellations that are asked of jobs which this shard holds. Rides: cancel_request_pkey. Repeatable: yes.
select job, reason from {schema}.cancel_request where job = any(%(held)s::bigint[])
