-- Marks a request as delivered and keeps the source's metadata when some is given; one row, or none when it was marked before.
-- Locks: the delivery's row, then the source's. Rides: primary keys. Repeatable: yes.
with delivered as (
    update {schema}.http_source_delivery set delivered_at = now() where id = %(id)s and delivered_at is null
    returning id, source_id
), source as (
    update {schema}.trigger_source s set metadata = %(metadata)s::jsonb from delivered d
     where s.id = d.source_id and %(metadata)s::jsonb is not null
)
select id from delivered
