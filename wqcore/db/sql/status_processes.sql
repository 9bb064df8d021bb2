-- The masters and how long ago they were heard of.
select id, host, pid, queue_group, version, started_at, extract(epoch from now() - beat_at)::float8 as beat_age_s, report
  from {schema}.process order by started_at
