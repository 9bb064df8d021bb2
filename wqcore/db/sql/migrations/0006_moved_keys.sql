-- A waiting job is not moved to another slot: its shard may claim it at that moment and run it beside what comes of it there.
-- The function is that of 0002 otherwise, with the rights of 0003. One transaction.

-- Inserts a job that has a job key, or that must be unique; (id, what): inserted, replaced or skipped.
-- Promises: at most one unfinished job has a job key or a unique key, whoever else inserts at the same time.
-- A waiting job of the key is overwritten (replace, preserve_run_at) or left (unsafe_dedupe); if it is claimed at this very
-- moment, its changed revision makes it run again with the new args. One of another queue or serial key ends as cancelled,
-- and one that is held by a shard is left to run, but loses its key and its retries: a new job is inserted.
-- A changed job always gets a run_at: a ready row behind a shard's cursor would not be looked for.
create or replace function {schema}.insert_keyed(
    p_queue text, p_slot integer, p_priority integer, p_run_at timestamptz, p_kind text, p_max_attempts integer,
    p_serial_key text, p_metadata json, p_args json, p_job_key text, p_mode text, p_unique_by jsonb, p_channel text
) returns table (id bigint, what text)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $fn$
#variable_conflict use_column
declare
    v_old {schema}.job;
    v_id bigint;
    v_unique bytea;
begin
    perform pg_current_xact_id();  -- before the id is drawn: insert_one.sql says why
    if p_unique_by is not null then
        v_unique := {schema}.unique_key_of(p_unique_by, p_kind, p_args, p_queue, p_run_at);
    end if;
    loop
        if p_job_key is not null then
            select j.* into v_old from {schema}.job j where j.job_key = p_job_key for update;
            if found then
                if p_mode = 'unsafe_dedupe' then
                    return query select v_old.id, 'skipped'; return;
                end if;
                if {schema}.is_held(v_old.id, v_old.queue) then
                    update {schema}.job j set job_key = null, max_attempts = 0 where j.id = v_old.id;
                elsif v_old.queue = p_queue and v_old.serial_key is not distinct from p_serial_key then
                    update {schema}.job j
                       set priority = p_priority, kind = p_kind, args = p_args, max_attempts = p_max_attempts,
                           metadata = p_metadata, attempt = 0, deaths = 0, errors = null, revision = j.revision + 1,
                           run_at = coalesce(case when p_mode = 'preserve_run_at' and j.attempt = 0 then j.run_at
                                                  else p_run_at end, now())
                     where j.id = v_old.id;
                    if p_channel is not null then
                        perform pg_notify(p_channel, 'due');
                    end if;
                    return query select v_old.id, 'replaced'; return;
                else
                    -- Its slot follows from queue and key, so it would have to move to a slot of another shard, and the
                    -- one that claims it at this moment cannot know. So it ends, as if it were cancelled, and its
                    -- successor is another job.
                    delete from {schema}.job j where j.id = v_old.id;
                    delete from {schema}.cancel_request c where c.job = v_old.id;
                    insert into {schema}.history
                    select * from {schema}.ending(
                        v_old, 'cancelled', v_old.attempt, null, null,
                        jsonb_build_object('error', 'replaced by a newer job of its job key'), null, 10);
                    perform pg_notify(q.channel, 'gone:' || v_old.id) from {schema}.queue q where q.name = v_old.queue;
                    if p_mode = 'preserve_run_at' and v_old.attempt = 0 then
                        p_run_at := coalesce(v_old.run_at, now());
                    end if;
                end if;
            end if;
        end if;
        insert into {schema}.job as j (queue, slot, priority, run_at, kind, max_attempts, serial_key, metadata, args,
                                       job_key, unique_key)
        values (p_queue, p_slot, p_priority, p_run_at, p_kind, p_max_attempts, p_serial_key, p_metadata, p_args,
                p_job_key, v_unique)
        on conflict do nothing
        returning j.id into v_id;
        if found then
            -- Only now, with the key in our hands, can no job of it end unseen.
            if p_unique_by -> 'states' ?| array['completed', 'cancelled', 'discarded'] then
                select h.id into v_old from {schema}.history h
                 where h.unique_key = v_unique and p_unique_by -> 'states' ? h.outcome order by h.id desc limit 1;
                if found then
                    delete from {schema}.job j where j.id = v_id;
                    return query select v_old.id, 'skipped'; return;
                end if;
            end if;
            if p_channel is not null then
                perform pg_notify(p_channel, case when p_run_at is null then p_slot || ':' || p_priority else 'due' end);
            end if;
            return query select v_id, 'inserted'; return;
        end if;
        if v_unique is not null then
            select j.id into v_old from {schema}.job j where j.unique_key = v_unique;
            if found then
                return query select v_old.id, 'skipped'; return;
            end if;
        end if;
        -- whoever had the key has just ended or was just inserted: look again
    end loop;
end
$fn$;
