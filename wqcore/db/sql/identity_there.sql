-- Whether this database has our schema at all: `identity.sql` would end the caller's transaction where it has not.
-- Locks nothing. Repeatable: yes.
select to_regclass(format('%%I.migration', {schema_literal}::text)) is not null
