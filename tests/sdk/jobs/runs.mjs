// Jobs that show how a run starts and ends. Each is started by the event of its own name.

import { EventTrigger, eventTrigger } from "@trigger.dev/sdk";
import { z } from "zod";
import { record, step } from "../journal.mjs";

/** eventTrigger() never asks for preprocessing; the triggers of webhooks do, by this property. */
class PreprocessedTrigger extends EventTrigger {
  get preprocessRuns() {
    return true;
  }
}

export function defineRuns(client) {
  const define = (id, run, options = {}) =>
    client.defineJob({ id, name: id, version: "1.0.0", trigger: eventTrigger({ name: id }), run, ...options });

  define("plain", async (payload, io, ctx) => {
    record(ctx, "run");
    return payload;
  });

  define("broken", async (payload, io, ctx) => {
    record(ctx, "run");
    throw new TypeError("this job is broken");
  });

  define("checked", async (payload) => payload, {
    trigger: eventTrigger({ name: "checked", schema: z.object({ n: z.number() }) }),
  });

  // payload {hold_ms}; start and end are in one call, so that two of them overlap exactly if their calls do
  define(
    "limited",
    async (payload, io, ctx) => {
      record(ctx, "start");
      await step(io, ctx, "hold", () => new Promise((done) => setTimeout(done, payload.hold_ms ?? 200)));
      record(ctx, "end");
    },
    { concurrencyLimit: 1 },
  );

  // The SDK answers PREPROCESS_RUN always with abort: false, and with HTTP 500 if the payload cannot be parsed:
  // payload {label} becomes a property of the run, payload {refuse: true} the 500.
  define(
    "preprocess",
    async (payload, io, ctx) => {
      record(ctx, "run");
      return payload;
    },
    {
      trigger: new PreprocessedTrigger({
        event: {
          name: "preprocess",
          title: "Preprocessed",
          source: "trigger.dev",
          icon: "custom-event",
          parsePayload: (payload) => {
            if (payload.refuse) throw new Error("this payload is refused");
            return payload;
          },
          runProperties: (payload) => [{ label: "Label", text: payload.label ?? "none" }],
        },
      }),
    },
  );
}
