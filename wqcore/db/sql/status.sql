-- One row per queue for `wqcore status`. Counts are exact up to a cap, so that a table of millions stays cheap to watch.
select q.name, q.slots, q.paused_at is not null as paused,
       (select count(*) from {schema}.shard s where s.queue = q.name) as shards,
       (select count(*) from (select from {schema}.job j where j.queue = q.name and j.run_at is null
                              limit %(cap)s) c) as ready,
       (select count(*) from (select from {schema}.job j where j.queue = q.name and j.run_at <= now()
                              limit %(cap)s) c) as due,
       (select count(*) from (select from {schema}.job j where j.queue = q.name and j.run_at > now()
                              limit %(cap)s) c) as scheduled,
       (select coalesce(sum(cardinality(newest.ids)), 0)::bigint from {schema}.shard s cross join lateral (
            select ids from {schema}.claim c where c.shard = s.id order by c.turn desc limit 1) newest
         where s.queue = q.name) as held
  from {schema}.queue q order by q.name
