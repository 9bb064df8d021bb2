-- How many jobs of each kind there are, in every state. Locks nothing. Repeatable: yes.
select kind, count(*) from {schema}.jobs group by kind order by kind
