-- How full the queue of notifications is, which is one for the whole server; when it is full, commits that notify fail.
select pg_notification_queue_usage()::float8 as usage
