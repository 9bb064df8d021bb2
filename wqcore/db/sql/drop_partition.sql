-- Drops a partition of history whose day is over; whether it did. Locks the partition and history; takes what it needs
-- with its owner's rights. Repeatable: yes.
select {schema}.drop_partition(%(name)s)
