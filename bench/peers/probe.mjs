/**
 * Each handled job is counted once, and a peer's commands run alike for every queue written in Node.
 *
 * `count` is the probe of README.md. `program` reads the command line and does what the peers share: numbering jobs,
 * the clock, feeding by lines, the grid of `paced`, and the end. A killed process loses what it counted since the last
 * flush.
 */

import { accessSync, appendFileSync, constants, readFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";

const FLUSH_MS = 20;
const BULK_FROM = 2 ** 40; // jobs fed in bulk are numbered from here on, and only counted
const PREFIX = "1b4e28ba-2fa1-11d2-883f-";
const now = process.hrtime.bigint; // CLOCK_MONOTONIC, as Python's time.monotonic_ns()

let handled = 0;
let written = 0;
let entered = "";

/** The args of job `number`. */
export const args = (number) => ({ id: PREFIX + number.toString(16).padStart(12, "0") });

/** The handler of every peer, but for the waiting: its job began. */
export function count({ id }) {
  const number = Number.parseInt(id.slice(PREFIX.length), 16);
  if (number < BULK_FROM) entered += `${number} ${now()}\n`;
  if (++handled === 1) {
    write();
    setInterval(write, FLUSH_MS).unref();
  }
}

/** Milliseconds that a job waits after it was counted; 0 is not at all. */
export const wait_ms = Number(process.env.BENCH_WAIT_MS ?? 0);

function write() {
  if (handled === written) return;
  written = handled;
  const file = join(process.env.BENCH_FOLDER, String(process.pid));
  appendFileSync(`${file}.count`, `${now()} ${handled}\n`);
  if (entered) appendFileSync(`${file}.entered`, entered);
  entered = "";
}

/** The version of an installed package. */
export function version(name) {
  return JSON.parse(readFileSync(new URL(`node_modules/${name}/package.json`, import.meta.url))).version;
}

/**
 * Runs the command of the command line.
 *
 * `peer` has `describe`, an object; `setup(dsn)`; `producer(dsn)`, which connects and returns `batch` (jobs in a bulk
 * call), `bulk(numbers, options)`, `single(args)` and `close()`; and `work(dsn, concurrency)`, which returns its stop.
 */
export async function program(peer) {
  const [command, ...rest] = process.argv.slice(2);
  const [first, second] = rest.map(Number);
  const commands = {
    describe: () => console.log(JSON.stringify({ runtime: `node ${process.versions.node}`, ...peer.describe })),
    setup: () => peer.setup(dsn()),
    feed: () => producing(peer, (producer) => feed(producer, peer.describe.feed_options)),
    single: () => producing(peer, (producer) => single(producer, first)),
    paced: () => producing(peer, (producer) => paced(producer, first, second)),
    work: () => work(peer, first),
  };
  const wanted = { single: 1, paced: 2, work: 1 }[command] ?? 0;
  if (!commands[command] || rest.length !== wanted || ![first, second].slice(0, wanted).every((n) => n > 0)) {
    console.error("usage: describe | setup | feed | single COUNT | paced COUNT EVERY_MS | work CONCURRENCY");
    process.exit(2);
  }
  await commands[command]();
}

function dsn() {
  if (!process.env.BENCH_DSN) throw new Error("BENCH_DSN is not set: the libpq URI of the database to use");
  return process.env.BENCH_DSN;
}

async function producing(peer, what) {
  const producer = await peer.producer(dsn());
  try {
    await what(producer);
  } finally {
    await producer.close();
  }
}

const seconds = (began) => JSON.stringify({ seconds: Number(now() - began) / 1e9 });

async function feed(producer, known) {
  let next = BULK_FROM;
  console.log("ready");
  for await (const line of createInterface({ input: process.stdin })) {
    const [, jobs, json] = /^(\d+)\s*(.*)$/.exec(line) ?? [];
    if (!jobs) throw new Error(`feed wants lines of COUNT {"option": value}, not ${JSON.stringify(line)}`);
    const options = JSON.parse(json || "{}");
    const strange = Object.keys(options).filter((name) => !known.includes(name));
    if (strange.length) throw new Error(`this queue has no option ${strange}; it has ${known}`);
    const began = now();
    for (const end = next + Number(jobs); next < end; ) {
      const numbers = Array.from({ length: Math.min(producer.batch, end - next) }, (_, index) => next + index);
      await producer.bulk(numbers, options);
      next += numbers.length;
    }
    console.log(seconds(began));
  }
}

async function single(producer, jobs) {
  const began = now();
  for (let number = 0; number < jobs; number++) await producer.single(args(number));
  console.log(seconds(began));
}

async function paced(producer, jobs, every_ms) {
  const returned = [];
  const began = now();
  for (let number = 0; number < jobs; number++) {
    const early_ms = number * every_ms - Number(now() - began) / 1e6;
    if (early_ms > 0) await sleep(early_ms);
    await producer.single(args(number));
    returned.push(now());
  }
  // Not by JSON.stringify: it knows no bigint, and a double loses nanoseconds after 104 days of uptime.
  console.log(`{"returned_ns": [${returned.join(", ")}]}`);
}

async function work(peer, concurrency) {
  const place = dsn();
  // Now, not in the first job: there the queue would take it for a failure of the job.
  if (!process.env.BENCH_FOLDER) throw new Error("BENCH_FOLDER is not set: the folder of the probe's files");
  accessSync(process.env.BENCH_FOLDER, constants.W_OK);
  const stop = await peer.work(place, concurrency);
  process.on("exit", write);
  process.once("SIGTERM", async () => {
    await stop();
    process.exit(0);
  });
}
