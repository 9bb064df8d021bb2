-- Notes which schedules a master declares, for people. Only once the master has beaten. Repeatable: yes.
insert into {schema}.declaration (process, schedule)
select p.id, name from {schema}.process p cross join unnest(%(names)s::text[]) as name where p.id = %(process)s
on conflict do nothing
