-- Removes the rows of masters that are gone: our own when it ends, and dead ones that have no shard left.
-- Repeatable: yes.
delete from {schema}.process p
 where p.id = %(leaving)s
    or (p.beat_at < now() - %(dead_after_s)s * interval '1 second'
        and not exists (select from {schema}.shard s where s.process = p.id))
