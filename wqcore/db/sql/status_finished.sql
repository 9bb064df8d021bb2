-- Jobs that ended within the last hour, per outcome. Rides the day partitions.
select outcome, count(*) from {schema}.history where finished_at > now() - interval '1 hour' group by outcome
