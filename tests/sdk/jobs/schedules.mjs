// Jobs that are started by the clock: an interval, a cron expression, and intervals registered at run time.

import { cronTrigger, eventTrigger, intervalTrigger } from "@trigger.dev/sdk";
import { record } from "../journal.mjs";

export function defineSchedules(client) {
  const define = (id, trigger, run) => client.defineJob({ id, name: id, version: "1.0.0", trigger, run });

  const tick = async (payload, io, ctx) => {
    record(ctx, "tick", { ts: payload.ts, lastTimestamp: payload.lastTimestamp, schedule: ctx.source?.id });
  };
  define("interval", intervalTrigger({ seconds: 20 }), tick); // 20 s is the least that the protocol allows
  define("cron", cronTrigger({ cron: "* * * * *" }), tick);

  const schedule = client.defineDynamicSchedule({ id: "dynamic-schedule" });
  define("dynamic-interval", schedule, tick);

  // payload {id, seconds}
  define("register-interval", eventTrigger({ name: "register-interval" }), async (payload, io, ctx) => {
    const options = { seconds: payload.seconds ?? 20 };
    const registration = await io.registerInterval("register", schedule, payload.id, options);
    record(ctx, "registered", { schedule: payload.id });
    return registration;
  });

  // payload {id}
  define("unregister-interval", eventTrigger({ name: "unregister-interval" }), async (payload, io, ctx) => {
    const answer = await io.unregisterInterval("unregister", schedule, payload.id);
    record(ctx, "unregistered", { schedule: payload.id });
    return answer;
  });
}
