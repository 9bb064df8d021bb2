-- Makes a kind known to callers without Python. Repeatable: yes.
insert into {schema}.kind (name, stands_for, queue, priority, max_attempts, serial_key, serial_key_is_code, unique_by,
                           required, defaults, args_bytes_max, planned)
values (%(name)s, %(stands_for)s, %(queue)s, %(priority)s, %(max_attempts)s, %(serial_key)s, %(serial_key_is_code)s,
        %(unique_by)s::jsonb, %(required)s::text[], %(defaults)s::jsonb, %(args_bytes_max)s, %(planned)s)
on conflict (name) do update
   set (stands_for, queue, priority, max_attempts, serial_key, serial_key_is_code, unique_by, required, defaults,
        args_bytes_max, planned, declared_at)
     = (excluded.stands_for, excluded.queue, excluded.priority, excluded.max_attempts, excluded.serial_key,
        excluded.serial_key_is_code, excluded.unique_by, excluded.required, excluded.defaults,
        excluded.args_bytes_max, excluded.planned, now())
