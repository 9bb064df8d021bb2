-- How many sessions the server has, and how many of them are this program's. Numbers of sessions are for everybody;
-- names of other users' programs are not, so `ours` counts the sessions of this user alone.
select count(*) as all, count(*) filter (where application_name like 'wqcore%' or application_name like 'shard %') as ours
  from pg_stat_activity where backend_type = 'client backend' or backend_type is null
