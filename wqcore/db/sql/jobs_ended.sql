-- Which of these jobs are not unfinished any more, and whether the history has them. Both are asked of one snapshot, in
-- which a job that ends is in one table or the other.
-- Rides: job_pkey, history_id. Locks nothing. Repeatable: yes.
select w.id, exists (select from {schema}.history h where h.id = w.id) as kept
  from unnest(%(ids)s::bigint[]) as w (id)
 where not exists (select from {schema}.job j where j.id = w.id)
