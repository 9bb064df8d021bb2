-- Tasks of a run in the order in which they were made, from the one that `cursor` names; with `top`, those without a parent.
-- Rides: task_run_id_seq_idx. Repeatable: yes.
select t.*, (select count(*) from {schema}.task_attempt a where a.task_id = t.id) as attempts
  from {schema}.task t
 where t.run_id = %(run)s and (not %(top)s or t.parent_id is null)
   and t.seq >= coalesce((select c.seq from {schema}.task c where c.id = %(cursor)s and c.run_id = %(run)s), 0)
 order by t.seq limit %(take)s
