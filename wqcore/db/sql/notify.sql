-- A wake-up by itself.
select pg_notify(%(channel)s, %(payload)s)
