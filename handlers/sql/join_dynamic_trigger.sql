-- Connects a job to the dynamic trigger and the dynamic schedule of its endpoint that have this name, as far as they are
-- registered. Locks: the new rows. Rides: dynamic_trigger_endpoint_id_slug_type_key. Repeatable: yes.
insert into {schema}.dynamic_trigger_job (dynamic_trigger_id, job_id)
select id, %(job)s from {schema}.dynamic_trigger where endpoint_id = %(endpoint)s and slug = %(slug)s
on conflict do nothing
