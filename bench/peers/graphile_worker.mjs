/**
 * Graphile Worker as its page on performance has it: jobs are fetched and completed in batches; they are deleted.
 *
 * The numbers beside options are drains of 200,000 no-ops (medians of rounds that alternated on 2 cores), relative to
 * what is chosen here. concurrentJobs 24 or 500, maxPoolSize 10 and completeJobBatchDelay 5 made no difference beyond
 * the noise of 15%, measured with 80,000 no-ops and a local queue of 2000.
 * A local queue's no-ops run in one go, without a turn for timers: the probe's counts come one fetch apart, not 20 ms.
 * A stop while the local queue holds jobs logs "Cannot background something when the queue is already released": it is
 * 0.18.0's own error. In the stop that was looked at, the running jobs had ended and all others were unlocked.
 */

import { Logger, makeWorkerUtils, run, runMigrations, WorkerPreset } from "graphile-worker";
import { setTimeout as sleep } from "node:timers/promises";

import { args, count, program, version, wait_ms } from "./probe.mjs";

const TASK = "noop";
const LOCAL_QUEUE = 5000; // 500: 0.75; 2000: 0.9; 10000: 1.0. Latency is the same with 2000
const POLL_MS = 10; // drains are the same with 2000, the default; see below
const BATCH = 5000; // inserts: 1000: 0.9; 20000: 1.0

// Its logger tells each job at level info: errors and warnings are shown, the rest is dropped.
const logger = new Logger(() => (level, message) => {
  if (level === "error" || level === "warning") console.error(`${level}: ${message}`);
});

const preset = (dsn, worker = {}) => ({
  extends: [WorkerPreset],
  worker: { connectionString: dsn, logger, ...worker },
});

const spec = (options) => (number) => ({
  identifier: TASK,
  payload: args(number),
  queue_name: options.keys && `key ${number % options.keys}`,
  priority: options.priorities && number % options.priorities,
  run_at: options.delay_s && new Date(Date.now() + options.delay_s * 1000).toISOString(),
});

// The SQL function for many jobs. addJobs() of JavaScript sends the same and returns all rows: 0.6 of this.
const ADD_JOBS = `
select count(*) from graphile_worker.add_jobs(
  array(select json_populate_recordset(null::graphile_worker.job_spec, $1::json)))`;

await program({
  describe: {
    title: "Graphile Worker",
    version: version("graphile-worker"),
    settings:
      `2 processes, concurrentJobs 100, localQueue ${LOCAL_QUEUE}, batch delays 0, pollInterval ${POLL_MS} ms; ` +
      `inserts: add_jobs() of ${BATCH}`,
    table: "graphile_worker._private_jobs",
    unfinished: "select count(*) from graphile_worker._private_jobs",
    // From the newest on: the oldest are the first to be deleted, and their dead entries cost a look each.
    any_unfinished:
      "select coalesce((select true from graphile_worker._private_jobs order by id desc limit 1), false)",
    keeps_finished: false,
    forks: false,
    processes: 2,
    concurrency: 100,
    jobs_scale: 1.0,
    feed_options: ["priorities", "keys", "delay_s"],
  },

  setup: (dsn) => runMigrations({ preset: preset(dsn) }),

  async producer(dsn) {
    const utils = await makeWorkerUtils({ preset: preset(dsn) });
    await utils.withPgClient((client) => client.query("select 1"));
    return {
      batch: BATCH,
      async bulk(numbers, options) {
        const specs = JSON.stringify(numbers.map(spec(options)));
        await utils.withPgClient((client) => client.query(ADD_JOBS, [specs]));
      },
      single: (job) => utils.addJob(TASK, job),
      close: () => utils.release(),
    };
  },

  async work(dsn, concurrency) {
    const settings = {
      concurrentJobs: concurrency,
      maxPoolSize: Math.max(10, concurrency + 2), // as its documentation recommends
      localQueue: { size: LOCAL_QUEUE },
      // A new job is notified, but one that became due is not, nor one whose key became free: with 100 keys a drain
      // makes 100 jobs/s with 2000 ms, 1,100 with 100 ms, 5,900 with 10 ms, and 1,700 with no local queue at all. Idle
      // it costs both processes and PostgreSQL together 0.00, 0.01 and 0.12 cores.
      pollInterval: POLL_MS,
      completeJobBatchDelay: 0,
      failJobBatchDelay: 0,
    };
    const waiting = async (job) => {
      count(job);
      await sleep(wait_ms);
    };
    const runner = await run({
      preset: preset(dsn, settings),
      taskList: { [TASK]: wait_ms ? waiting : count },
      parsedCronItems: [],
      noHandleSignals: true, // its handlers end by killing the process, before the last count is written
    });
    return () => runner.stop();
  },
});
