-- What needs the owner's rights becomes functions that have them, so that masters and clients need not be the owner; and
-- names that cannot be read are refused. One transaction. docs/howto/security.md tells which role may do what.

-- Each has a search_path of its own: a caller must not be able to put another now() or = in its way.
alter function {schema}.make_partitions() security definer;
alter function {schema}.make_partitions() set search_path = pg_catalog, pg_temp;
-- With a role that may only insert, it looks for the key among jobs that its caller cannot read.
alter function {schema}.insert_keyed(text, integer, integer, timestamptz, text, integer, text, json, json, text, text,
                                     jsonb, text) security definer;
alter function {schema}.insert_keyed(text, integer, integer, timestamptz, text, integer, text, json, json, text, text,
                                     jsonb, text) set search_path = pg_catalog, pg_temp;

-- Drops a partition of history whose day is over, after it has noted up to which transaction readers of outcomes may miss
-- rows; whether it did. Anything else is left, whatever the caller asks for.
create function {schema}.drop_partition(p_name text) returns boolean
language plpgsql strict security definer set search_path = pg_catalog, pg_temp as $fn$
begin
    if p_name !~ '^history_[0-9]{8}$' or p_name >= 'history_' || to_char(now() at time zone 'UTC', 'YYYYMMDD')
       or not exists (select from pg_inherits i
                       where i.inhparent = to_regclass(format('%I.history', {schema_literal}))
                         and i.inhrelid = to_regclass(format('%I.%I', {schema_literal}, p_name))) then
        return false;
    end if;
    execute format('update %1$I.expired set xid = greatest(xid, (select coalesce(max(xid), 0) from %1$I.%2$I))',
                   {schema_literal}, p_name);
    execute format('drop table %I.%I', {schema_literal}, p_name);
    return true;
end
$fn$;

-- Brings the index history_xid up to the rows written since; only the owner of an index may.
create function {schema}.summarize_history() returns bigint
language sql security definer set search_path = pg_catalog, pg_temp as $fn$
    select sum(brin_summarize_new_values(i.inhrelid)) from pg_inherits i
     where i.inhparent = to_regclass(format('%I.history_xid', {schema_literal}))
$fn$;

-- A name of blanks cannot be told from another one. Rows from before are left as they are.
alter table {schema}.queue add constraint queue_name_not_blank check (name ~ '\S') not valid;
alter table {schema}.kind add constraint kind_name_not_blank check (name ~ '\S') not valid;
alter table {schema}.schedule add constraint schedule_name_not_blank check (name ~ '\S') not valid;

revoke all on all functions in schema {schema} from public;
