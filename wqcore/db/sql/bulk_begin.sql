-- Begins the transaction of a bulk insert: takes its xid before any id is drawn (insert_one.sql says why), and lifts the limit
-- of time on one statement, because a COPY lasts as long as the caller's iterator: 10,000,000 jobs took 61 s. What the limit
-- was for still holds of locks, for which the jobs with a key may have to wait.
-- Locks nothing. Repeatable: yes, within its transaction.
select pg_current_xact_id(), set_config('lock_timeout', current_setting('statement_timeout'), true),
       set_config('statement_timeout', '0', true)
