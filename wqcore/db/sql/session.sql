-- What the server does for this session: the limit of time on one statement, in seconds.
-- A pooler that drops settings which it does not understand leaves another one than we have asked for.
-- Locks nothing. Repeatable: yes.
select extract(epoch from current_setting('statement_timeout')::interval)::float8
