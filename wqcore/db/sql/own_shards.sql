-- The shards registered by this process: the keeper compares them with the workers that its master has.
select id, queue from {schema}.shard where process = %(process)s
