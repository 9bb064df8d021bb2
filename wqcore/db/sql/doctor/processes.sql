-- The masters and how long ago they were heard of.
select host, pid, version, extract(epoch from now() - beat_at)::float8 as beat_age_s from {schema}.process order by started_at
