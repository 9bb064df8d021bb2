// Jobs that show what a task can do. Each is started by the event of its own name.

import { eventTrigger } from "@trigger.dev/sdk";
import { record, step } from "../journal.mjs";

export function defineTasks(client) {
  const define = (id, run) =>
    client.defineJob({ id, name: id, version: "1.0.0", trigger: eventTrigger({ name: id }), run });

  define("steps", async (payload, io, ctx) => {
    const done = [];
    for (const key of ["one", "two", "three", "four", "five"]) done.push(await step(io, ctx, key));
    return { done: done.map(({ key }) => key) };
  });

  define("wait", async (payload, io, ctx) => {
    await step(io, ctx, "before");
    await io.wait("a second", 1);
    await step(io, ctx, "after");
    return { waited: true };
  });

  define("flaky", async (payload, io, ctx) =>
    step(
      io,
      ctx,
      "third time lucky",
      ({ attempts }) => {
        if (attempts < 3) throw new Error(`attempt ${attempts} fails`);
        return { attempts };
      },
      { retry: { limit: 3, minTimeoutInMs: 50, factor: 1, randomize: false } },
    ),
  );

  // payload {url, body?}; a body makes it a POST. What the platform fetched is the run's output.
  define("fetch", async (payload, io, ctx) => {
    const request = payload.body && {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(payload.body),
    };
    const fetched = await io.backgroundFetch("fetched", payload.url, request, {
      retry: {
        "500-599": { strategy: "backoff", limit: 3, minTimeoutInMs: 50, factor: 1, randomize: false },
        429: {
          strategy: "headers",
          limitHeader: "x-ratelimit-limit",
          remainingHeader: "x-ratelimit-remaining",
          resetHeader: "x-ratelimit-reset",
          resetFormat: "unix_timestamp_in_ms",
        },
      },
    });
    await step(io, ctx, "use");
    return { fetched };
  });

  define("chain", async (payload, io, ctx) => {
    // an id of its own makes the sending repeatable: without one the platform could not tell a repetition
    const event = { id: `${ctx.run.id}-second`, name: "second", payload: { from: ctx.run.id } };
    const sent = await io.sendEvent("send", event);
    return { sent: sent.id };
  });

  define("second", async (payload, io, ctx) => {
    record(ctx, "run", { from: payload.from });
    return payload;
  });

  define("yield", async (payload, io, ctx) => {
    await step(io, ctx, "before");
    io.yield("once");
    await step(io, ctx, "after");
  });

  define("parallel", async (payload, io, ctx) =>
    io.parallel("both", ["left", "right"], async (side) => {
      await step(io, ctx, `${side} before`);
      await io.wait(`${side} wait`, 0.5);
      return step(io, ctx, `${side} after`);
    }),
  );
}
