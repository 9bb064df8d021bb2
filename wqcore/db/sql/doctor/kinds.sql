-- The kinds of the first waiting jobs. No index has the kind: the bound keeps it cheap on a table of millions.
select kind, count(*) as jobs from (select kind from {schema}.job order by id limit 10000) first group by kind order by kind
