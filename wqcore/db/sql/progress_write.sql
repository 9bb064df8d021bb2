-- Writes how far running jobs say they are, away from their own rows. Rides: progress_pkey. Repeatable: yes.
insert into {schema}.progress (job, fraction, note)
select id, fraction, note
  from unnest(%(ids)s::bigint[], %(fractions)s::float8[], %(notes)s::text[]) as p (id, fraction, note) order by id
on conflict (job) do update set fraction = excluded.fraction, note = excluded.note, at = now()
