-- Gives back what lock_refresh took, in the same session.
select pg_advisory_unlock(hashtextextended('refresh:' || %(id)s, 0))
