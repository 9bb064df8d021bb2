-- Rows whose partition was not there in time are deleted by age. Locks the rows. Repeatable: yes.
with gone as (
    delete from {schema}.history_other where expires_at < now() returning xid
)
update {schema}.expired set xid = greatest(xid, (select max(xid) from gone)) where exists (select from gone)
