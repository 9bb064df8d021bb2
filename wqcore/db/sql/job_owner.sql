-- Who holds a job, as its master's last heartbeat shows it, and the request to cancel it, if somebody has made one.
-- Rides: shard (a row a worker), claim_pkey, process_pkey, cancel_request_pkey. Locks nothing. Repeatable: yes.
select s.id::text as shard, p.host, p.pid, p.report -> 'shards' -> s.id::text as report,
       c.reason, c.asked_at
  from (values (%(job)s::bigint)) as j (id)
  left join {schema}.cancel_request c on c.job = j.id
  left join lateral (
    select s.* from {schema}.shard s
     cross join lateral (select ids from {schema}.claim c where c.shard = s.id order by c.turn desc limit 1) newest
     where j.id = any(newest.ids) limit 1) s on true
  left join {schema}.process p on p.id = s.process
