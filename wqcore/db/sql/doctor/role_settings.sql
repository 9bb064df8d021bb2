-- Settings that an administrator gave to this user or this database.
select unnest(setconfig) as setting, setrole <> 0 as is_of_role from pg_db_role_setting
 where setrole in (0, (select oid from pg_roles where rolname = current_user))
   and setdatabase in (0, (select oid from pg_database where datname = current_database()))
