with locked as (
    select id from classic_job
     where state = 'available' and queue = 'default' and scheduled_at <= now()
     order by priority, scheduled_at, id limit :batch for update skip locked
),
claimed as (
    update classic_job j set state = 'running', attempt = attempt + 1, attempted_at = now(),
           attempted_by = array_append(attempted_by, 'bench')
      from locked where j.id = locked.id
    returning j.id, j.args
)
select coalesce(array_agg(id), '{}') as ids, sum(length(args::text)) as bytes from claimed \gset
delete from classic_job where id = any(:ids::bigint[]);
