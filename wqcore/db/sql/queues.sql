-- The known queues, for inserting.
select name, slots from {schema}.queue
