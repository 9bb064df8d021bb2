-- Removes progress and requests of jobs that have ended otherwise than expected: both tables are small. Repeatable: yes.
with requests as (
    delete from {schema}.cancel_request c
     where c.asked_at < now() - interval '1 minute' and not exists (select from {schema}.job j where j.id = c.job)
)
delete from {schema}.progress p
 where p.at < now() - interval '1 minute' and not exists (select from {schema}.job j where j.id = p.job)
