-- Records that an endpoint was indexed; one row, or none when this job has done it before.
-- Promises: one record a job. Locks: the unique index entry of the job, then the endpoint. Rides: endpoint_index_wq_job_id_key.
-- Repeatable: yes.
with recorded as (
    insert into {schema}.endpoint_index (id, endpoint_id, wq_job_id, source, source_data, reason, stats)
    values (%(id)s, %(endpoint)s, %(wq_job)s, %(source)s, %(source_data)s, %(reason)s, %(stats)s)
    on conflict (wq_job_id) do nothing
    returning id, endpoint_id
), dated as (
    update {schema}.endpoint e set indexed_at = now() from recorded r where e.id = r.endpoint_id
)
select id from recorded
