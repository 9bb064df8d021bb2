// An endpoint as a user of the platform runs it: the published SDK and its Express adapter, with the jobs of jobs/.
// It prints {"port": n} when it listens, and ends when its standard input does: it cannot outlive whoever started it.
//
// TRIGGER_API_URL, TRIGGER_API_KEY   the platform, and the key of the environment (the SDK reads both)
// ENDPOINT_ID, JOURNAL               the endpoint's id; the file to which each effect of a job is appended
// UPSTREAM_URL                       where the external source registers its hooks
// PORT                               default 0: any free one

import { createMiddleware } from "@trigger.dev/express";
import { TriggerClient } from "@trigger.dev/sdk";
import express from "express";
import { defineRuns } from "./jobs/runs.mjs";
import { defineSchedules } from "./jobs/schedules.mjs";
import { defineSources } from "./jobs/sources.mjs";
import { defineTasks } from "./jobs/tasks.mjs";

console.log = console.error; // standard output is for the port; the SDK logs to it

const client = new TriggerClient({ id: process.env.ENDPOINT_ID });
for (const define of [defineRuns, defineTasks, defineSchedules, defineSources]) define(client);

const app = express();
app.use(createMiddleware(client));
const server = app.listen(Number(process.env.PORT ?? 0), "127.0.0.1", () => {
  process.stdout.write(JSON.stringify({ port: server.address().port }) + "\n");
});

process.stdin.on("end", () => process.exit(0)).on("error", () => process.exit(0)).resume();
