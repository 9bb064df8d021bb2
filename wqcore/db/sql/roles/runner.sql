-- Masters, their workers, and programs that control jobs. No rights to change what the tables are: partitions of history
-- are made and dropped by functions with their owner's rights.
grant usage on schema {schema} to {role};
grant select on {schema}.migration, {schema}.jobs to {role};
-- UPDATE also where rows are only locked (shard). A retry of a finished job takes its row out of history.
grant select, insert, update, delete on {schema}.job, {schema}.history, {schema}.process, {schema}.shard, {schema}.permit,
    {schema}.progress, {schema}.schedule to {role};
grant select, insert, delete on {schema}.claim, {schema}.cancel_request to {role};
grant select, insert, update on {schema}.queue, {schema}.slot, {schema}.kind to {role};
grant select, insert on {schema}.declaration to {role};
grant select, delete on {schema}.history_other to {role};
grant select, update on {schema}.expired to {role};
grant select on sequence {schema}.job_id_seq to {role};
grant execute on all functions in schema {schema} to {role};
