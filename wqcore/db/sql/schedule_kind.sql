-- What must be known to set a schedule: whether kind and queue exist, and what the kind asks of its args.
-- Repeatable: yes.
select k.name is not null, coalesce(k.planned, false), coalesce(k.required, '{}'),
       exists (select from {schema}.queue q where q.name = coalesce(%(queue)s::text, k.queue)),
       coalesce(%(queue)s::text, k.queue)
  from (select) one
  left join {schema}.kind d on d.name = %(kind)s
  left join {schema}.kind k on k.name = d.stands_for
