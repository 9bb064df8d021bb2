-- The published shape of River's table and of its fetch: a state column, and one index that a claim rides.
create table classic_job (
    id bigint generated always as identity primary key, state text not null default 'available', attempt smallint not null
    default 0, max_attempts smallint not null default 25, attempted_at timestamptz, attempted_by text[], created_at
    timestamptz not null default now(), scheduled_at timestamptz not null default now(), priority smallint not null
    default 1, queue text not null default 'default', kind text not null, args jsonb not null, errors jsonb[]
);
create index on classic_job (state, queue, priority, scheduled_at, id);
