-- Resolves what a connection was missing for: the same integration and account, in all environments of the organization.
-- Promises: each row is returned once, ever. `for update`, because it conflicts with the key share lock of a waiting_run
--   that is being inserted: when this returns, the runs that wait are committed, and the next statement sees them.
-- Locks: missing_connection in id order. Rides: the partial unique index, which has only what is not resolved: few rows.
-- Repeatable: yes.
with missed as (
    select m.id from {schema}.missing_connection m
     where m.organization_id = %(organization)s and m.integration_id = %(integration)s
       and m.account_id is not distinct from %(account)s and m.resolved_at is null
     order by m.id for update of m
)
update {schema}.missing_connection m set resolved_at = now()
  from missed where m.id = missed.id
returning m.id, m.environment_id, m.account_id
