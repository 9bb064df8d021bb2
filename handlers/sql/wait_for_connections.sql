-- Lets a run wait for the connections that its version needs and that are missing, and enqueues missingConnectionCreated for
-- each one that was not missed before.
-- Promises: one open missing_connection an (environment, integration, account). A connection that is made at this moment may
--   not see the run: the caller starts the run once more afterwards.
-- Locks: the run, then the missing connections in the order of the integrations. Rides: job_run_pkey, job_integration_pkey,
--   missing_connection's unique index. Repeatable: yes, without effect.
with run as materialized (
    select r.id, r.version_id, r.account_id, r.environment_id from {schema}.job_run r
     where r.id = %(run)s and r.status in ('PENDING', 'QUEUED', 'WAITING_ON_CONNECTIONS')
       for no key update of r
), needed as materialized (
    select i.id, i.organization_id, r.environment_id, r.account_id, row_number() over (order by i.id) as n
      from run r join {schema}.job_integration n on n.version_id = r.version_id
      join {schema}.integration i on i.id = n.integration_id and i.auth_source = 'HOSTED'
     where not exists (select from {schema}.connection c
                        where c.integration_id = i.id and c.enabled and c.account_id is not distinct from r.account_id)
     group by i.id, r.environment_id, r.account_id
), missed as (
    insert into {schema}.missing_connection as m (id, organization_id, environment_id, integration_id, account_id)
    select %(missing)s || '_' || n.n, n.organization_id, n.environment_id, n.id, n.account_id from needed n order by n.id
    on conflict (environment_id, integration_id, coalesce(account_id, '')) where resolved_at is null
    do update set account_id = excluded.account_id
    returning m.id, starts_with(m.id, %(missing)s) as is_new
), waiting as (
    insert into {schema}.waiting_run (run_id, missing_connection_id)
    select r.id, m.id from run r cross join missed m order by m.id
    on conflict do nothing
), moved as (
    update {schema}.job_run u set status = 'WAITING_ON_CONNECTIONS' from run r
     where u.id = r.id and exists (select from missed)
), told as materialized (
    select {wqcore}.enqueue('missingConnectionCreated', json_build_object('id', m.id)) from missed m where m.is_new
)
select count(*) as told from told
