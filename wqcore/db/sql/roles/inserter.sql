-- Python programs that insert jobs: Client.insert, insert_many, insert_tx and enqueue. They check kinds and args
-- themselves, so whoever has this role could insert a job that no handler can run; it gets an outcome that says so.
grant usage on schema {schema} to {role};
grant select (name, slots) on {schema}.queue to {role};
-- Which database this is, where a client has several.
grant select (version, applied_at) on {schema}.migration to {role};
-- The columns of copy.sql and insert_one.sql, and the id that an insert returns.
grant insert (queue, slot, priority, run_at, kind, max_attempts, serial_key, metadata, args), select (id)
    on {schema}.job to {role};
grant execute on function {schema}.insert_keyed, {schema}.enqueue to {role};
