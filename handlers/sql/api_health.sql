-- Whether the tables can be read. Rides: nothing. Repeatable: yes.
select exists (select from {schema}.environment)
