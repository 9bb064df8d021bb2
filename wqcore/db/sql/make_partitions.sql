-- Makes the partitions of history for the days to come. Repeatable: yes.
select {schema}.make_partitions()
