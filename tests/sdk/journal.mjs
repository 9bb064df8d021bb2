// The journal: one line of JSON for each effect of a job, appended by a single write, so that lines of several
// processes do not mix and what a killed process had done is on record.

import fs from "node:fs";

const journal = fs.openSync(process.env.JOURNAL, "a");

/** Records that `what` happened in the run of `ctx`; `task` is the task in which it did, if any. */
export function record(ctx, what, { key, task, ...more } = {}) {
  const line = {
    at: Date.now(),
    run: ctx.run.id,
    job: ctx.job.id,
    key: key ?? null,
    idempotencyKey: task?.idempotencyKey ?? null,
    attempt: task?.attempts ?? null,
    what,
    ...more,
  };
  fs.writeSync(journal, JSON.stringify(line) + "\n");
}

/** A task whose effect is on record before `work` goes on; `work` may throw. */
export function step(io, ctx, key, work = () => ({ key }), options = {}) {
  const effect = async (task) => {
    record(ctx, "task", { key, task });
    return await work(task);
  };
  return io.runTask(key, effect, { name: key, ...options });
}
