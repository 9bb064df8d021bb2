-- The cancellations of a queue that wait for the owner of their job. Rides: cancel_request_queue. Repeatable: yes.
select job, reason from {schema}.cancel_request where queue = %(queue)s order by job limit 1000
