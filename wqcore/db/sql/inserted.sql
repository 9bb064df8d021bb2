-- The jobs of a kind in every state, for a test that asks what was inserted. Locks nothing. Repeatable: yes.
select id, state, queue, priority, serial_key, job_key, convert_to(args::text, 'UTF8')
  from {schema}.jobs where kind = %(kind)s order by id
