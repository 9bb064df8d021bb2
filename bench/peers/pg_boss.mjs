/**
 * pg-boss with its batches, its burst mode and LISTEN/NOTIFY; completed jobs stay in the table, as it has it.
 *
 * The numbers beside options are drains of 60,000 to 100,000 no-ops (medians of rounds that alternated on 2 cores),
 * relative to what is chosen here. A batch is one call of the handler and ends as one: if it throws, all its jobs are
 * repeated. CONCURRENCY is the size of that batch, and with BENCH_WAIT_MS its jobs wait together.
 */

import { PgBoss } from "pg-boss";
import { setTimeout as sleep } from "node:timers/promises";

import { args, count, program, version, wait_ms } from "./probe.mjs";

const QUEUE = "noop";
const KEYED = "noop_keyed"; // a queue's policy holds for all its jobs, so those with keys have a queue of their own
const CONCURRENCY = 5000; // 300: 0.8; 1000: 0.9; 3000: 0.95; 10000: 1.1, twice what its own source has measured
// A fetch takes one job of a key, and only a full one is followed by another at once. With 100 keys: 15,700 jobs/s with
// batches of 100, 400 with 1000; with 1,000 keys 18,600 and 25,100.
const KEYED_BATCH = 100;
const BATCH = 5000; // inserts: 1000: 0.95; 10000: 0.95

// In the words of its index job_i14, which has no completed jobs; `state < 'completed'` reads the whole table.
const UNFINISHED = `from pgboss.job where name in ('${QUEUE}', '${KEYED}') and state in ('created', 'retry', 'active')`;

async function boss(dsn, options) {
  const found = new PgBoss({ connectionString: dsn, ...options });
  found.on("error", (error) => console.error(error));
  found.on("warning", (warning) => console.error(`warning: ${warning.message}`));
  await found.start();
  return found;
}

const spec = (options) => (number) => ({
  data: args(number),
  priority: options.priorities && number % options.priorities,
  singletonKey: options.keys && `key ${number % options.keys}`,
  startAfter: options.delay_s,
});

await program({
  describe: {
    title: "pg-boss",
    version: version("pg-boss"),
    settings: `2 processes, batches of ${CONCURRENCY} in one handler call, burst, notify; insert() of ${BATCH}`,
    table: "pgboss.job_common",
    unfinished: `select count(*) ${UNFINISHED}`,
    any_unfinished: `select exists (select ${UNFINISHED})`,
    keeps_finished: true,
    forks: false,
    processes: 2,
    concurrency: CONCURRENCY,
    jobs_scale: 0.5,
    feed_options: ["priorities", "keys", "delay_s"],
  },

  async setup(dsn) {
    const pg_boss = await boss(dsn, { supervise: false, schedule: false });
    // Without notify: latency p50 242 ms, not 1.1, and the same drain and inserts. With `partition`: 0.97.
    await pg_boss.createQueue(QUEUE, { notify: true });
    // One active job of a key, by a unique index. (groupConcurrency, by its source, only looks before it takes.)
    await pg_boss.createQueue(KEYED, { notify: true, policy: "singleton" });
    await pg_boss.stop();
  },

  async producer(dsn) {
    const pg_boss = await boss(dsn, { supervise: false, schedule: false });
    return {
      batch: BATCH,
      bulk: (numbers, options) => pg_boss.insert(options.keys ? KEYED : QUEUE, numbers.map(spec(options))),
      single: (job) => pg_boss.send(QUEUE, job),
      close: () => pg_boss.stop(),
    };
  },

  async work(dsn, concurrency) {
    const pg_boss = await boss(dsn, { useListenNotify: true });
    const settings = {
      batchSize: concurrency,
      localConcurrency: 1, // 2 of the same batch: 0.97
      burstWhenBatchFull: true,
      pollingIntervalSeconds: 0.5, // the smallest it allows; what became due is found by polling only
      notifyPollingIntervalSeconds: 0.5,
    };
    const handler = async (jobs) => {
      for (const job of jobs) count(job.data);
      if (wait_ms) await sleep(wait_ms);
    };
    await pg_boss.work(QUEUE, settings, handler);
    await pg_boss.work(KEYED, { ...settings, batchSize: Math.min(KEYED_BATCH, concurrency) }, handler);
    return () => pg_boss.stop();
  },
});
