-- The row of a job, by project and slug. Locks: the job's row. Rides: job_project_id_slug_key. Repeatable: yes.
insert into {schema}.job (id, project_id, slug, title, internal)
values (%(id)s, %(project)s, %(slug)s, %(title)s, %(internal)s)
on conflict (project_id, slug) do update set title = excluded.title, internal = excluded.internal
returning id
