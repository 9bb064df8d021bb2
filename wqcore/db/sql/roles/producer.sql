-- Whoever inserts jobs from SQL: the function `enqueue` checks everything, so this role needs no right on any table.
grant usage on schema {schema} to {role};
grant execute on function {schema}.enqueue to {role};
