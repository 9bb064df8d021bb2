-- The tables of the platform: who owns what, what an endpoint holds, and how far each event, run and task has come.
-- Ids are made by the program (`ids.new`), so that a row and the jobs that speak of it are written in one statement.
-- Columns that end in `_sealed` hold what `secrets.seal` has encrypted.

create table {schema}.organization (
    id text primary key,
    title text not null,
    slug text not null unique,
    email text,
    created_at timestamptz not null default now(),
    welcomed_at timestamptz
);

create table {schema}.project (
    id text primary key,
    organization_id text not null references {schema}.organization on delete cascade,
    name text not null,
    slug text not null,
    created_at timestamptz not null default now(),
    unique (organization_id, slug)
);

-- The key is looked up by its hash; the platform also sends it to endpoints, so it is kept sealed.
create table {schema}.environment (
    id text primary key,
    organization_id text not null references {schema}.organization on delete cascade,
    project_id text not null references {schema}.project on delete cascade,
    slug text not null,
    type text not null check (type in ('PRODUCTION', 'STAGING', 'DEVELOPMENT', 'PREVIEW')),
    api_key_hash bytea not null unique,
    api_key_sealed bytea not null,
    created_at timestamptz not null default now(),
    unique (project_id, slug)
);

create table {schema}.endpoint (
    id text primary key,
    environment_id text not null references {schema}.environment on delete cascade,
    slug text not null,
    url text not null,
    created_at timestamptz not null default now(),
    indexed_at timestamptz,
    unique (environment_id, slug)
);

-- One row a finished indexEndpoint job.
create table {schema}.endpoint_index (
    id text primary key,
    endpoint_id text not null references {schema}.endpoint on delete cascade,
    wq_job_id bigint not null unique,
    source text,
    source_data jsonb,
    reason text,
    stats jsonb not null,
    created_at timestamptz not null default now()
);

create table {schema}.secret (
    id text primary key,
    environment_id text references {schema}.environment on delete cascade,
    value_sealed bytea not null,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

-- A service that runs connect to; OAuth ones have a token endpoint and a client. Only HOSTED ones have connections here: for
-- LOCAL and RESOLVER ones the endpoint's own code has or finds the credentials.
create table {schema}.integration (
    id text primary key,
    organization_id text not null references {schema}.organization on delete cascade,
    slug text not null,
    title text not null,
    auth_source text not null check (auth_source in ('LOCAL', 'HOSTED', 'RESOLVER')),
    token_url text,
    client_id text,
    client_secret_sealed bytea,
    scopes text[] not null default '{}',
    created_at timestamptz not null default now(),
    unique (organization_id, slug)
);

-- `token_version` grows with each refresh: a token is refreshed once, whoever asks for it. `issued_at` and `expires_at` are
-- the life of the access token.
create table {schema}.connection (
    id text primary key,
    organization_id text not null references {schema}.organization on delete cascade,
    integration_id text not null references {schema}.integration on delete cascade,
    account_id text,
    access_token_sealed bytea not null,
    refresh_token_sealed bytea,
    token_version bigint not null default 1,
    scopes text[] not null default '{}',
    issued_at timestamptz not null default now(),
    expires_at timestamptz,
    enabled boolean not null default true,
    created_at timestamptz not null default now()
);
create index on {schema}.connection (integration_id);

create table {schema}.missing_connection (
    id text primary key,
    organization_id text not null references {schema}.organization on delete cascade,
    environment_id text not null references {schema}.environment on delete cascade,
    integration_id text not null references {schema}.integration on delete cascade,
    account_id text,
    resolved_at timestamptz,
    created_at timestamptz not null default now()
);
create unique index on {schema}.missing_connection (environment_id, integration_id, coalesce(account_id, ''))
    where resolved_at is null;

create table {schema}.job (
    id text primary key,
    project_id text not null references {schema}.project on delete cascade,
    slug text not null,
    title text not null,
    internal boolean not null default false,
    created_at timestamptz not null default now(),
    unique (project_id, slug)
);

-- The number of the last run; apart from `job`, which many rows refer to and whose row would be locked by them.
create table {schema}.run_counter (
    job_id text primary key references {schema}.job on delete cascade,
    last_number bigint not null default 0
);

create table {schema}.job_queue (
    id text primary key,
    environment_id text not null references {schema}.environment on delete cascade,
    name text not null,
    max_jobs integer not null check (max_jobs >= 1),
    job_count integer not null default 0 check (job_count >= 0),
    unique (environment_id, name)
);

create table {schema}.job_version (
    id text primary key,
    job_id text not null references {schema}.job on delete cascade,
    environment_id text not null references {schema}.environment on delete cascade,
    endpoint_id text not null references {schema}.endpoint on delete cascade,
    queue_id text not null references {schema}.job_queue on delete cascade,
    version text not null,
    enabled boolean not null default true,
    event jsonb not null,
    trigger jsonb not null,
    start_position text not null default 'latest',
    preprocess_runs boolean not null default false,
    examples jsonb not null default '[]',
    created_at timestamptz not null default now(),
    unique (job_id, version, environment_id)
);

create table {schema}.job_alias (
    job_id text not null references {schema}.job on delete cascade,
    environment_id text not null references {schema}.environment on delete cascade,
    name text not null,
    version_id text not null references {schema}.job_version on delete cascade,
    primary key (job_id, environment_id, name)
);

-- Which connections a version's runs need, by the key that its code uses.
create table {schema}.job_integration (
    version_id text not null references {schema}.job_version on delete cascade,
    key text not null,
    integration_id text not null references {schema}.integration on delete cascade,
    primary key (version_id, key)
);

create table {schema}.event_record (
    id text primary key,
    event_id text not null,
    environment_id text not null references {schema}.environment on delete cascade,
    name text not null,
    source text not null,
    payload jsonb not null,
    context jsonb,
    source_context jsonb,
    account_id text,
    is_test boolean not null default false,
    internal boolean not null default false,
    "timestamp" timestamptz not null default now(),
    created_at timestamptz not null default now(),
    deliver_at timestamptz not null default now(),
    delivered_at timestamptz,
    cancelled_at timestamptz,
    unique (event_id, environment_id)
);

-- Starts runs: of the job `target_id` in the version that its alias `latest` names here, or of all jobs of the dynamic
-- trigger `target_id`. `key` is what it exists for: a job, a registered source or a schedule. A dispatcher that is `manual`
-- is invoked by its schedule alone, never by a matching event.
create table {schema}.event_dispatcher (
    id text primary key,
    environment_id text not null references {schema}.environment on delete cascade,
    key text not null,
    kind text not null check (kind in ('JOB_VERSION', 'DYNAMIC_TRIGGER')),
    target_id text not null,
    events text[] not null,
    source text not null,
    payload_filter jsonb,
    context_filter jsonb,
    manual boolean not null default false,
    enabled boolean not null default true,
    created_at timestamptz not null default now(),
    unique (environment_id, key)
);
create index on {schema}.event_dispatcher (environment_id, source) where enabled and not manual;

create table {schema}.dynamic_trigger (
    id text primary key,
    endpoint_id text not null references {schema}.endpoint on delete cascade,
    environment_id text not null references {schema}.environment on delete cascade,
    slug text not null,
    type text not null check (type in ('EVENT', 'SCHEDULE')),
    register_job_id text references {schema}.job on delete set null,
    created_at timestamptz not null default now(),
    unique (endpoint_id, slug, type)
);

create table {schema}.dynamic_trigger_job (
    dynamic_trigger_id text not null references {schema}.dynamic_trigger on delete cascade,
    job_id text not null references {schema}.job on delete cascade,
    primary key (dynamic_trigger_id, job_id)
);

-- `has_place`: the run holds one of its queue's `max_jobs` places; whoever turns it to false gives the place back.
create table {schema}.job_run (
    id text primary key,
    number bigint not null,
    job_id text not null references {schema}.job on delete cascade,
    version_id text not null references {schema}.job_version on delete cascade,
    environment_id text not null references {schema}.environment on delete cascade,
    endpoint_id text not null references {schema}.endpoint on delete cascade,
    queue_id text not null references {schema}.job_queue on delete cascade,
    event_id text not null references {schema}.event_record on delete cascade,
    dispatcher_id text,
    status text not null default 'PENDING' check (status in ('PENDING', 'QUEUED', 'WAITING_ON_CONNECTIONS',
        'PREPROCESSING', 'STARTED', 'SUCCESS', 'FAILURE', 'TIMED_OUT', 'ABORTED', 'CANCELED', 'UNRESOLVED_AUTH',
        'INVALID_PAYLOAD')),
    has_place boolean not null default false,
    account_id text,
    is_test boolean not null default false,
    output jsonb,
    properties jsonb,
    yielded text[] not null default '{}',
    created_at timestamptz not null default now(),
    queued_at timestamptz,
    started_at timestamptz,
    completed_at timestamptz,
    unique (job_id, number),
    unique (dispatcher_id, job_id, event_id)
);
create index job_run_queued on {schema}.job_run (queue_id, queued_at, id) where status = 'QUEUED';
create index job_run_listed on {schema}.job_run (environment_id, created_at desc);

-- What a run says of itself under a key: the newest word, and those before it.
create table {schema}.run_status (
    run_id text not null references {schema}.job_run on delete cascade,
    key text not null,
    label text not null,
    state text check (state in ('loading', 'success', 'failure')),
    data jsonb,
    history jsonb not null default '[]',
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    primary key (run_id, key)
);

-- `missing_connection` and the runs that wait for it.
create table {schema}.waiting_run (
    run_id text not null references {schema}.job_run on delete cascade,
    missing_connection_id text not null references {schema}.missing_connection on delete cascade,
    primary key (run_id, missing_connection_id)
);
create index on {schema}.waiting_run (missing_connection_id);

-- `wq_job_id` is the performRunExecution job that performs it; a job that is no longer named here is a zombie.
create table {schema}.job_run_execution (
    id text primary key,
    run_id text not null references {schema}.job_run on delete cascade,
    reason text not null check (reason in ('PREPROCESS', 'EXECUTE_JOB')),
    status text not null default 'PENDING' check (status in ('PENDING', 'STARTED', 'SUCCESS', 'FAILURE')),
    retry_count integer not null default 0,
    is_retry boolean not null default false,
    resume_task_id text,
    wq_job_id bigint not null,
    error text,
    created_at timestamptz not null default now(),
    due_at timestamptz not null default now(),
    started_at timestamptz,
    completed_at timestamptz
);
create index on {schema}.job_run_execution (run_id);
create index job_run_execution_open on {schema}.job_run_execution (due_at) where status in ('PENDING', 'STARTED');

create table {schema}.task (
    id text primary key,
    run_id text not null references {schema}.job_run on delete cascade,
    parent_id text,
    idempotency_key text not null,
    name text not null,
    display_key text,
    icon text,
    description text,
    status text not null check (status in ('PENDING', 'WAITING', 'RUNNING', 'COMPLETED', 'ERRORED', 'CANCELED')),
    noop boolean not null default false,
    operation text,
    params jsonb,
    properties jsonb,
    output jsonb,
    output_properties jsonb,
    context jsonb,
    error text,
    style jsonb,
    redact jsonb,
    delay_until timestamptz,
    started_at timestamptz,
    completed_at timestamptz,
    seq bigint generated always as identity,
    created_at timestamptz not null default now(),
    unique (run_id, idempotency_key)
);
create index on {schema}.task (run_id, seq);

create table {schema}.task_attempt (
    id text primary key,
    task_id text not null references {schema}.task on delete cascade,
    number integer not null,
    status text not null default 'PENDING' check (status in ('PENDING', 'STARTED', 'COMPLETED', 'ERRORED')),
    error text,
    run_at timestamptz,
    created_at timestamptz not null default now(),
    unique (task_id, number)
);

-- `registration_key`: what user code calls this registration of a dynamic trigger.
create table {schema}.trigger_source (
    id text primary key,
    environment_id text not null references {schema}.environment on delete cascade,
    endpoint_id text not null references {schema}.endpoint on delete cascade,
    key text not null,
    channel text not null check (channel in ('HTTP', 'SQS', 'SMTP')),
    version text not null default '1',
    params jsonb,
    channel_data jsonb,
    metadata jsonb,
    active boolean not null default false,
    secret_id text references {schema}.secret on delete set null,
    integration_id text references {schema}.integration on delete set null,
    dynamic_trigger_id text references {schema}.dynamic_trigger on delete cascade,
    register_job_id text references {schema}.job on delete set null,
    registration_key text,
    account_id text,
    created_at timestamptz not null default now(),
    unique (environment_id, key)
);
create index on {schema}.trigger_source (endpoint_id);

-- The events that a source asks its service for: option `event`, value `push`. `registered`: the service sends them.
create table {schema}.source_event (
    source_id text not null references {schema}.trigger_source on delete cascade,
    name text not null,
    value text not null,
    registered boolean not null default false,
    wanted boolean not null default true,
    primary key (source_id, name, value)
);

create table {schema}.http_source_delivery (
    id text primary key,
    source_id text not null references {schema}.trigger_source on delete cascade,
    environment_id text not null references {schema}.environment on delete cascade,
    endpoint_id text not null references {schema}.endpoint on delete cascade,
    url text not null,
    method text not null,
    headers jsonb not null,
    body bytea,
    created_at timestamptz not null default now(),
    delivered_at timestamptz
);

-- Ticks of a schedule: `next_tick` is the tick that a job exists for.
create table {schema}.schedule_source (
    id text primary key,
    environment_id text not null references {schema}.environment on delete cascade,
    dispatcher_id text not null references {schema}.event_dispatcher on delete cascade,
    dynamic_trigger_id text references {schema}.dynamic_trigger on delete cascade,
    key text not null,
    type text not null check (type in ('cron', 'interval')),
    cron text,
    seconds integer,
    metadata jsonb,
    account_id text,
    active boolean not null default true,
    last_tick timestamptz,
    next_tick timestamptz,
    created_at timestamptz not null default now(),
    unique (environment_id, key),
    check ((type = 'cron') = (cron is not null) and (type = 'interval') = (seconds is not null))
);
create index on {schema}.schedule_source (next_tick) where active;

create table {schema}.repository (
    id text primary key,
    installation_id text not null,
    full_name text not null,
    created_at timestamptz not null default now(),
    removed_at timestamptz,
    unique (installation_id, full_name)
);
create index on {schema}.repository (full_name) where removed_at is null;

-- The key-value store that an environment's runs share.
create table {schema}.stored_value (
    environment_id text not null references {schema}.environment on delete cascade,
    key text not null,
    value text not null,
    updated_at timestamptz not null default now(),
    primary key (environment_id, key)
);

-- Which project deploys which branch of which repository, and the endpoint that the deployment serves.
create table {schema}.project_link (
    project_id text primary key references {schema}.project on delete cascade,
    repository_id text not null references {schema}.repository on delete cascade,
    branch text not null,
    endpoint_id text references {schema}.endpoint on delete set null,
    unlinked_at timestamptz
);
create index on {schema}.project_link (repository_id);

create table {schema}.deployment (
    id text primary key,
    project_id text not null references {schema}.project on delete cascade,
    repository_id text references {schema}.repository on delete set null,
    branch text not null,
    commit_sha text not null,
    status text not null default 'PENDING' check (status in ('PENDING', 'BUILDING', 'DEPLOYED', 'ERROR', 'STOPPED')),
    initial boolean not null default false,
    created_at timestamptz not null default now(),
    unique (project_id, commit_sha)
);
create unique index on {schema}.deployment (project_id) where initial;

create table {schema}.vm (
    id text primary key,
    machine_id text not null,
    app_name text not null,
    deployment_id text references {schema}.deployment on delete set null,
    state text not null default 'started' check (state in ('created', 'starting', 'started', 'stopping', 'stopped',
        'destroyed')),
    state_at timestamptz not null default now()
);
