-- Keys, uniqueness, limits, control, schedules, and a history whose partitions are days of expiry.
-- One transaction; docs/concepts/states.md tells how a job moves between these tables.

-- What a queue may do, changed at run time; a shard reads it at each look. Keys: max_per_key, rate, rate_per_key,
-- max_workers_total. What is not set here is as the configuration of the master says.
alter table {schema}.queue
    add column limits jsonb not null default '{}',
    -- Hours that finished jobs stay, by outcome, as the configuration says: what control from SQL goes by.
    add column keep_hours jsonb not null default '{"completed": 24, "cancelled": 24, "discarded": 168}',
    -- The channel of the queue's notifications (wqcore/db/wake.py), so that SQL need not know how it is made.
    add column channel text;
update {schema}.queue
   set channel = 'wq:' || left(encode(sha256(convert_to({schema_literal}, 'UTF8') || '\x00'::bytea
                                             || convert_to(name, 'UTF8')), 'hex'), 32);
alter table {schema}.queue alter column channel set not null;

-- The kinds that masters have declared: what a caller without the Python types must know to insert one.
create table {schema}.kind (
    name           text collate "C" primary key check (octet_length(name) between 1 and 128),
    -- the kind that this name stands for (itself, unless it is an alias)
    stands_for     text collate "C" not null,
    queue          text collate "C" not null,
    priority       smallint not null,
    max_attempts   smallint not null,
    -- a template such as runs-{id}; null when there is no key
    serial_key     text,
    -- true: the key is a Python function, so a caller from SQL must give it
    serial_key_is_code boolean not null default false,
    -- what makes two jobs of it the same, as unique_key_of reads it; null: every job is another
    unique_by      jsonb,
    required       text[] not null default '{}',
    -- what fields that are left out are, so that keys made of args are the same whoever inserts
    defaults       jsonb not null default '{}',
    args_bytes_max integer not null default 262144,
    planned        boolean not null default false,
    declared_at    timestamptz not null default now()
);

-- 0: no run may follow, because a newer job has taken this one's job key while it ran.
alter table {schema}.job drop constraint job_max_attempts_check;
alter table {schema}.job add constraint job_max_attempts_check check (max_attempts between 0 and 1000);
-- Due jobs are read by priority too: one of high priority must not wait behind a storm of retries.
drop index {schema}.job_due;
create index job_due on {schema}.job (queue, slot, priority desc, run_at, id) where run_at is not null;

-- Places of a queue whose max_workers_total is limited over all hosts. A shard runs at most as many jobs as it owns
-- permits; each permit has one owner, so the limit holds also while shares move.
create table {schema}.permit (
    queue  text collate "C" not null,
    permit integer not null,
    shard  bigint,
    primary key (queue, permit)
);
create index permit_shard on {schema}.permit (shard) where shard is not null;

-- Cancellations that the owner of a claimed job has still to carry out.
create table {schema}.cancel_request (
    job    bigint primary key,
    queue  text collate "C" not null,
    reason text not null,
    asked_at timestamptz not null default now()
);
create index cancel_request_queue on {schema}.cancel_request (queue);

-- How far running jobs say they are; written at most once a second a job, away from the job's own row.
create table {schema}.progress (
    job      bigint primary key,
    fraction real not null check (fraction between 0 and 1),
    note     text,
    at       timestamptz not null default now()
) with (fillfactor = 50);

create table {schema}.schedule (
    name         text collate "C" primary key check (octet_length(name) between 1 and 128),
    source       text not null check (source in ('code', 'conf', 'api')),
    kind         text collate "C" not null,
    args         json not null default '{}',
    -- exactly one of the two; a cron expression has 5 fields, or 6 with seconds first
    cron         text,
    every_s      double precision check (every_s >= 1),
    timezone     text not null default 'UTC',
    backfill_s   double precision not null default 0 check (backfill_s >= 0),
    -- queue, priority, max_attempts, serial_key, job_key, job_key_mode, metadata of each job
    options      jsonb not null default '{}',
    paused_at    timestamptz,
    -- the last tick that made its job, and the first one that has not been dealt with: a conditional update of both
    -- makes each tick happen once
    last_tick    timestamptz,
    next_tick    timestamptz,
    last_job     bigint,
    -- why the due tick could not make its job
    last_error   text,
    created_at   timestamptz not null default now(),
    -- the version of the row: a null next_tick means the first tick after this
    updated_at   timestamptz not null default now(),
    check ((cron is null) <> (every_s is null))
);
create index schedule_next on {schema}.schedule (next_tick) where paused_at is null;

-- Which masters declare a schedule, in code or configuration; it goes with the master's row.
create table {schema}.declaration (
    process  uuid not null references {schema}.process (id) on delete cascade,
    schedule text collate "C" not null,
    primary key (process, schedule)
);

-- Keepers hear of every change, by whatever program; their own ticks leave updated_at alone.
create function {schema}.schedule_changed() returns trigger
language plpgsql as $fn$
begin
    perform pg_notify('wq:' || left(encode(sha256(convert_to({schema_literal}, 'UTF8') || '\x00'::bytea), 'hex'), 32),
                      'schedules');
    return null;
end
$fn$;
create trigger schedule_changed after insert or delete or update of updated_at on {schema}.schedule
    for each statement execute function {schema}.schedule_changed();

-- Up to this transaction the history may lack rows, because their time was over: a reader of outcomes that is behind
-- it is told of a gap.
create table {schema}.expired (
    xid bigint not null
);
insert into {schema}.expired (xid) values (0);

-- Finished jobs, partitioned by the day on which they expire. Each row carries its own expiry, so that every queue and
-- outcome has its own retention and still only whole tables are dropped.
drop view {schema}.jobs;
alter table {schema}.history rename to history_before;
drop index {schema}.history_id;
create table {schema}.history (
    id            bigint not null,
    queue         text collate "C" not null,
    kind          text collate "C" not null,
    outcome       text collate "C" not null,
    priority      smallint not null,
    attempt       smallint not null,
    max_attempts  smallint not null,
    deaths        smallint not null,
    shard         bigint,
    serial_key    text collate "C",
    job_key       text collate "C",
    unique_key    bytea,
    created_at    timestamptz not null,
    attempted_at  timestamptz,
    finished_at   timestamptz not null,
    expires_at    timestamptz not null,
    -- the transaction that ended the job: outcomes in the order in which they became visible
    xid           bigint not null,
    args          json not null,
    metadata      json,
    errors        jsonb,
    output        json
) partition by range (expires_at);
create index history_id on {schema}.history (id);
create index history_unique_key on {schema}.history (unique_key) where unique_key is not null;
-- The dead letter list: rows that somebody will look for are few beside those that completed.
create index history_ended on {schema}.history (outcome, id) where outcome <> 'completed';
-- Rows are appended in about this order, so a few bytes for each 128 pages find the newest.
create index history_xid on {schema}.history using brin (xid) with (pages_per_range = 32, autosummarize = on);
-- The net: a day whose partition was not made in time is kept here, not refused.
create table {schema}.history_other partition of {schema}.history default;
insert into {schema}.history
select id, queue, kind, outcome, priority, attempt, max_attempts, deaths, shard, serial_key, job_key, null, created_at,
       attempted_at, finished_at,
       finished_at + case outcome when 'discarded' then interval '168 hours' else interval '24 hours' end,
       pg_current_xact_id()::text::bigint, args, metadata, errors, output
  from {schema}.history_before;
drop table {schema}.history_before;

-- One state per job, with River's names.
create view {schema}.jobs as
    with held as materialized (
        select distinct unnest(c.ids) as id from {schema}.claim c join {schema}.shard s on s.id = c.shard
         where c.turn = (select max(n.turn) from {schema}.claim n where n.shard = c.shard)
    )
    select j.id, j.kind, j.queue,
           case when h.id is not null then 'running'
                when j.run_at > now() and j.errors is not null then 'retryable'
                when j.run_at > now() then 'scheduled'
                else 'available' end as state,
           j.priority, j.attempt, j.max_attempts, j.deaths, j.serial_key, j.job_key, j.created_at, j.run_at,
           null::timestamptz as attempted_at, null::timestamptz as finished_at,
           j.args, j.metadata, j.errors, null::json as output, p.fraction as progress, p.note as progress_note
      from {schema}.job j left join held h on h.id = j.id left join {schema}.progress p on p.job = j.id
    union all
    select id, kind, queue, outcome, priority, attempt, max_attempts, deaths, serial_key, job_key, created_at, null,
           attempted_at, finished_at, args, metadata, errors, output, null, null
      from {schema}.history;

-- Whether the newest claim of a living shard names the job: it runs, or waits for a seat.
create function {schema}.is_held(p_job bigint, p_queue text) returns boolean
language sql stable as $fn$
    select exists (
        select from {schema}.shard s
         cross join lateral (select c.ids from {schema}.claim c where c.shard = s.id order by c.turn desc limit 1) newest
         where s.queue = p_queue and p_job = any(newest.ids))
$fn$;

-- The history row of a job that ends now, with the retention of its queue; no row where that keeps nothing.
-- Cold paths write their history through this; the turn has the list of columns in itself, because it is hot.
create function {schema}.ending(
    j {schema}.job, p_outcome text, p_attempt integer, p_shard bigint, p_attempted_at timestamptz, p_error jsonb,
    p_output json, p_errors_kept integer
) returns setof {schema}.history
language sql stable as $fn$
    select j.id, j.queue, j.kind, p_outcome, j.priority, p_attempt::smallint, j.max_attempts, j.deaths, p_shard,
           j.serial_key, j.job_key, j.unique_key, j.created_at, p_attempted_at, now(),
           now() + k.hours * interval '1 hour', pg_current_xact_id()::text::bigint, j.args,
           j.metadata,
           case when p_error is null then j.errors
                when jsonb_array_length(j.errors) >= p_errors_kept then j.errors - 0
                else coalesce(j.errors, '[]') end || case when p_error is null then '[]'
                                                          else p_error || jsonb_build_object('at', now()) end,
           p_output
      from (select coalesce((select (q.keep_hours ->> p_outcome)::float8 from {schema}.queue q where q.name = j.queue),
                            24) as hours) k
     where k.hours > 0
$fn$;

-- Makes the partitions of history for the days to come; the names of those that it made. A day that cannot be had now
-- (a lock, or rows of that day in history_other) is left out: its rows go to history_other.
create function {schema}.make_partitions() returns setof text
language plpgsql as $fn$
declare
    v_today date := (now() at time zone 'UTC')::date;
    v_days integer := 2 + ceil(coalesce((
        select max(hours::float8) from {schema}.queue q cross join jsonb_each_text(q.keep_hours) as k (outcome, hours)
    ), 24) / 24);
    v_day date;
    v_name text;
begin
    for v_day in select v_today + n from generate_series(0, v_days) n loop
        v_name := 'history_' || to_char(v_day, 'YYYYMMDD');
        continue when to_regclass(format('%I.%I', {schema_literal}, v_name)) is not null;
        begin
            execute format('create table if not exists %I.%I partition of %I.history for values from (%L) to (%L)',
                           {schema_literal}, v_name, {schema_literal}, v_day::text || ' 00:00:00+00',
                           (v_day + 1)::text || ' 00:00:00+00');
            return next v_name;
        exception when check_violation or lock_not_available or duplicate_table or unique_violation then
            null;
        end;
    end loop;
end
$fn$;

-- The slot of a serial key: the first four bytes of its SHA-256, modulo the slots (line/insert.py computes the same).
create function {schema}.slot_of(p_key text, p_slots integer) returns smallint
language sql immutable as $fn$
    select ((get_byte(h, 0)::bigint << 24 | get_byte(h, 1) << 16 | get_byte(h, 2) << 8 | get_byte(h, 3))
            % p_slots)::smallint
      from (select sha256(convert_to(p_key, 'UTF8')) as h) digest
$fn$;

-- What makes two jobs the same: `by` has args (true, or a list of fields), queue (true), period_s, states.
-- Computed here only, so that clients in any language agree, and periods are those of the database's clock.
create function {schema}.unique_key_of(p_by jsonb, p_kind text, p_args json, p_queue text, p_run_at timestamptz)
returns bytea
language sql stable as $fn$
    select sha256(convert_to(jsonb_build_array(
        p_kind,
        case jsonb_typeof(p_by -> 'args')
            when 'array' then (select coalesce(jsonb_object_agg(field, p_args::jsonb -> field order by field), '{}')
                                 from jsonb_array_elements_text(p_by -> 'args') as field)
            when 'boolean' then case when (p_by ->> 'args')::boolean then p_args::jsonb end end,
        case when (p_by ->> 'queue')::boolean then p_queue end,
        floor(extract(epoch from coalesce(p_run_at, now())) / (p_by ->> 'period_s')::numeric)
    )::text, 'UTF8'))
$fn$;

-- Inserts a job that has a job key, or that must be unique; (id, what): inserted, replaced or skipped.
-- Promises: at most one unfinished job has a job key or a unique key, whoever else inserts at the same time.
-- A waiting job of the key is overwritten (replace, preserve_run_at) or left (unsafe_dedupe). One that is held by a
-- shard is left to run, but loses its key and its retries, and a new job is inserted; if it was claimed at this very
-- moment, its changed revision makes it run again with the new args.
-- A changed job always gets a run_at: a ready row behind a shard's cursor would not be looked for.
create function {schema}.insert_keyed(
    p_queue text, p_slot integer, p_priority integer, p_run_at timestamptz, p_kind text, p_max_attempts integer,
    p_serial_key text, p_metadata json, p_args json, p_job_key text, p_mode text, p_unique_by jsonb, p_channel text
) returns table (id bigint, what text)
language plpgsql as $fn$
#variable_conflict use_column
declare
    v_old record;
    v_id bigint;
    v_unique bytea;
begin
    perform pg_current_xact_id();  -- before the id is drawn: insert_one.sql says why
    if p_unique_by is not null then
        v_unique := {schema}.unique_key_of(p_unique_by, p_kind, p_args, p_queue, p_run_at);
    end if;
    loop
        if p_job_key is not null then
            select j.id, j.queue, j.attempt into v_old from {schema}.job j where j.job_key = p_job_key for update;
            if found then
                if p_mode = 'unsafe_dedupe' then
                    return query select v_old.id, 'skipped'; return;
                end if;
                if not {schema}.is_held(v_old.id, v_old.queue) then
                    -- It stays in its slot where it can: a shard may claim it while this transaction is open, and only
                    -- the same shard can know that it must not run what it finds here beside that.
                    update {schema}.job j
                       set queue = p_queue,
                           slot = case when j.queue = p_queue and j.serial_key is not distinct from p_serial_key
                                       then j.slot else p_slot end,
                           priority = p_priority, kind = p_kind, args = p_args,
                           max_attempts = p_max_attempts, serial_key = p_serial_key, metadata = p_metadata,
                           attempt = 0, deaths = 0, errors = null, revision = j.revision + 1,
                           run_at = coalesce(case when p_mode = 'preserve_run_at' and j.attempt = 0 then j.run_at
                                                  else p_run_at end, now())
                     where j.id = v_old.id;
                    if p_channel is not null then
                        perform pg_notify(p_channel, 'due');
                    end if;
                    return query select v_old.id, 'replaced'; return;
                end if;
                update {schema}.job j set job_key = null, max_attempts = 0 where j.id = v_old.id;
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

-- Inserts a job from SQL, a trigger, or any language; the id of the job, or of the one that was there already.
-- Everything that the caller leaves out is as the kind declares it. Refuses with SQLSTATE 22023 and a hint.
create function {schema}.enqueue(
    kind text, args json default '{}', queue text default null, priority integer default null,
    run_at timestamptz default null, max_attempts integer default null, serial_key text default null,
    job_key text default null, job_key_mode text default 'replace', unique_by jsonb default null,
    metadata json default null
) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $fn$
#variable_conflict use_variable
declare
    k {schema}.kind;
    q {schema}.queue;
    given jsonb;
    missing text[];
    v_id bigint;
begin
    select * into k from {schema}.kind d where d.name = kind;
    if not found then
        raise exception 'unknown kind %', coalesce(quote_literal(kind), 'null') using errcode = '22023',
            hint = 'Check the spelling, or start a master (or run "wqcore migrate") whose handlers declare it.';
    end if;
    if k.stands_for <> k.name then
        select * into k from {schema}.kind d where d.name = k.stands_for;
        if not found then
            raise exception 'kind % stands for one that is not declared any more', quote_literal(kind)
                using errcode = '22023', hint = 'Use the new name, or run "wqcore migrate" with the handlers that have it.';
        end if;
    end if;
    if k.planned then
        raise exception 'kind % is declared, but its handler is not written yet', quote_literal(k.name)
            using errcode = '22023', hint = 'Write its handler and remove planned=True.';
    end if;
    if json_typeof(args) is distinct from 'object' then
        raise exception 'args of % must be a JSON object, not %', quote_literal(k.name), coalesce(json_typeof(args), 'null')
            using errcode = '22023';
    end if;
    if octet_length(args::text) > k.args_bytes_max then
        raise exception 'args of % take % bytes; at most % are allowed', quote_literal(k.name),
            octet_length(args::text), k.args_bytes_max using errcode = '22023',
            hint = 'Store the bulk elsewhere and pass a reference, or raise insert.args_bytes_max.';
    end if;
    begin
        given := args::jsonb;
    exception when untranslatable_character or invalid_text_representation then
        raise exception 'args of % contain a NUL or a lone surrogate, which PostgreSQL cannot store',
            quote_literal(k.name) using errcode = '22023', hint = 'Remove it.';
    end;
    missing := array(select field from unnest(k.required) as field where not given ? field);
    if missing <> '{}' then
        raise exception 'args of % lack %', quote_literal(k.name), array_to_string(missing, ', ')
            using errcode = '22023', hint = 'Fields are named as in JSON, after any renaming by the args type.';
    end if;
    if not given ?& array(select jsonb_object_keys(k.defaults)) then
        given := k.defaults || given;
        args := given::json;
    end if;
    select * into q from {schema}.queue d where d.name = coalesce(queue, k.queue);
    if not found then
        raise exception 'unknown queue % for kind %', quote_literal(coalesce(queue, k.queue)), quote_literal(k.name)
            using errcode = '22023',
            hint = 'Start a master that has it (or run "wqcore migrate"), or correct the name.';
    end if;
    if coalesce(priority, k.priority) not between -1000 and 1000 then
        raise exception 'priority % is outside -1000 … 1000', priority using errcode = '22023';
    end if;
    if coalesce(max_attempts, k.max_attempts) not between 1 and 1000 then
        raise exception 'max_attempts % is outside 1 … 1000', max_attempts using errcode = '22023';
    end if;
    if not isfinite(run_at) then
        raise exception 'run_at % is not a time', run_at using errcode = '22023';
    end if;
    if json_typeof(metadata) <> 'object' then
        raise exception 'metadata must be a JSON object, not %', json_typeof(metadata) using errcode = '22023';
    end if;
    if job_key_mode is null or job_key_mode not in ('replace', 'preserve_run_at', 'unsafe_dedupe') then
        raise exception 'job_key_mode % is not one of replace, preserve_run_at, unsafe_dedupe', job_key_mode
            using errcode = '22023';
    end if;
    if unique_by is not null then
        if job_key is not null then
            raise exception 'a job has a job_key or is unique, not both' using errcode = '22023',
                hint = 'A job key is a name that you choose; unique_by makes one from the job itself.';
        end if;
        if not {schema}.unique_by_is_valid(unique_by) then
            raise exception 'unique_by % is not understood', unique_by using errcode = '22023',
                hint = 'It is an object of args (true, or a list of fields), queue (true), period_s (a number above 0) and '
                       'states (a list of completed, cancelled, discarded); unfinished jobs always count.';
        end if;
        -- A field that no job has would make all jobs the same, and drop all but the first.
        if jsonb_typeof(unique_by -> 'args') = 'array' then
            missing := array(select field from jsonb_array_elements_text(unique_by -> 'args') as field
                             where not given ? field);
            if missing <> '{}' then
                raise exception 'unique_by: args of % lack %', quote_literal(k.name), array_to_string(missing, ', ')
                    using errcode = '22023', hint = 'Fields are named as in JSON, after any renaming by the args type.';
            end if;
        end if;
    elsif job_key is null then
        unique_by := k.unique_by;
    end if;
    if serial_key is null and k.serial_key_is_code then
        raise exception 'the serial key of kind % is computed by its program', quote_literal(k.name)
            using errcode = '22023', hint = 'Pass serial_key => … from SQL.';
    end if;
    if serial_key is null and k.serial_key is not null then
        serial_key := {schema}.filled(k.serial_key, args);
    end if;
    if octet_length(serial_key) not between 1 and 128 or octet_length(job_key) not between 1 and 128 then
        raise exception 'serial_key and job_key have 1 to 128 bytes' using errcode = '22023';
    end if;
    select i.id into v_id from {schema}.insert_keyed(
        q.name,
        case when serial_key is null then floor(random() * q.slots)::integer
             else {schema}.slot_of(serial_key, q.slots) end,
        coalesce(priority, k.priority), run_at, k.name, coalesce(max_attempts, k.max_attempts), serial_key, metadata,
        args, job_key, job_key_mode, unique_by, q.channel) as i;
    return v_id;
end
$fn$;

create function {schema}.unique_by_is_valid(p_by jsonb) returns boolean
language sql immutable as $fn$
    select case when jsonb_typeof(p_by) <> 'object' then false else
        p_by - array['args', 'queue', 'period_s', 'states'] = '{}'
        and (not p_by ? 'args' or case jsonb_typeof(p_by -> 'args')
            when 'array' then p_by -> 'args' <> '[]' and not jsonb_path_exists(p_by, '$.args[*] ? (@.type() != "string")')
            else jsonb_typeof(p_by -> 'args') = 'boolean' end)
        and (not p_by ? 'queue' or jsonb_typeof(p_by -> 'queue') = 'boolean')
        and (not p_by ? 'period_s' or case jsonb_typeof(p_by -> 'period_s')
            when 'number' then (p_by ->> 'period_s')::numeric > 0 and (p_by ->> 'period_s')::numeric < 1e10
            else jsonb_typeof(p_by -> 'period_s') = 'null' end)
        and (not p_by ? 'states' or (jsonb_typeof(p_by -> 'states') = 'array'
                                     and p_by -> 'states' <@ '["completed", "cancelled", "discarded"]')) end
$fn$;

-- A template such as runs-{id} with the fields of `args` put in, each written as Python writes it: a kind gives a
-- template to SQL only when its fields are text, whole numbers, booleans or null.
create function {schema}.filled(p_template text, p_args json) returns text
language plpgsql immutable as $fn$
declare
    v_out text := '';
    v_parts text[];
begin
    loop
        v_parts := regexp_match(p_template, '^(.*?)\{([^{}]+)\}(.*)$');
        exit when v_parts is null;
        v_out := v_out || v_parts[1] || case json_typeof(p_args -> v_parts[2])
            when 'boolean' then initcap(p_args ->> v_parts[2])
            when 'number' then trim_scale((p_args ->> v_parts[2])::numeric)::text
            else coalesce(p_args ->> v_parts[2], 'None') end;
        p_template := v_parts[3];
    end loop;
    return v_out || p_template;
end
$fn$;

-- Cancels one job: cancelled (it waited), cancelling (it is held; its owner ends it), finished, or unknown.
create function {schema}.cancel(p_job bigint, p_reason text default 'cancelled') returns text
language plpgsql as $fn$
declare
    v_job {schema}.job;
    v_channel text;
begin
    select * into v_job from {schema}.job j where j.id = p_job for update;
    if not found then
        return case when exists (select from {schema}.history h where h.id = p_job) then 'finished' else 'unknown' end;
    end if;
    select channel into v_channel from {schema}.queue where name = v_job.queue;
    if {schema}.is_held(p_job, v_job.queue) then
        insert into {schema}.cancel_request (job, queue, reason) values (p_job, v_job.queue, p_reason)
        on conflict (job) do nothing;
        perform pg_notify(v_channel, 'cancel');
        return 'cancelling';
    end if;
    delete from {schema}.job j where j.id = p_job;
    delete from {schema}.cancel_request where job = p_job;
    insert into {schema}.history
    select * from {schema}.ending(v_job, 'cancelled', v_job.attempt, null, null,
                                  jsonb_build_object('error', p_reason), null, 10);
    -- A turn that began before this may have claimed it: its shard drops what it is told is gone.
    perform pg_notify(v_channel, 'gone:' || p_job);
    return 'cancelled';
end
$fn$;

-- Pauses a queue (null: all): nothing of it is started any more. What runs goes on.
create function {schema}.pause(p_queue text default null) returns integer
language sql as $fn$
    with changed as (
        update {schema}.queue set paused_at = now()
         where (p_queue is null or name = p_queue) and paused_at is null returning channel
    )
    select count(*)::integer from (select pg_notify(channel, 'queue') from changed) told
$fn$;

create function {schema}.resume(p_queue text default null) returns integer
language sql as $fn$
    with changed as (
        update {schema}.queue set paused_at = null
         where (p_queue is null or name = p_queue) and paused_at is not null returning channel
    )
    select count(*)::integer from (select pg_notify(channel, 'queue') from changed) told
$fn$;

-- Functions are for whoever is granted them, not for everybody who may see the schema.
revoke all on all functions in schema {schema} from public;
