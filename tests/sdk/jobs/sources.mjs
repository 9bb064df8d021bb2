// An external HTTP source, as an integration with webhooks is written. The upstream (UPSTREAM_URL) is told of a hook
// by POST /hooks {repo, url, secret, events} and answers {id}. It sends its events to that url: {event, repo, commit},
// with the headers x-signature: sha256=<hex HMAC of the body with the secret> and x-delivery: <the event's id>.

import { ExternalSource, ExternalSourceTrigger, eventTrigger, verifyRequestSignature } from "@trigger.dev/sdk";
import { z } from "zod";
import { record, step } from "../journal.mjs";

const upstream = {
  id: "upstream",
  metadata: { id: "upstream", name: "Upstream" },
  authSource: "LOCAL",
  cloneForRun: () => upstream,
};

const repository = new ExternalSource("HTTP", {
  id: "repository",
  version: "0.1.0",
  schema: z.object({ repo: z.string() }),
  integration: upstream,
  key: ({ repo }) => repo,
  filter: ({ repo }) => ({ repo: [repo] }),
  properties: ({ repo }) => [{ label: "Repository", text: repo }],

  register: async ({ source, options, params }, io, ctx) => {
    const events = [...new Set([...options.event.desired, ...options.event.missing])];
    const hook = await step(io, ctx, "register hook", async () => {
      const answer = await fetch(`${process.env.UPSTREAM_URL}/hooks`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ repo: params.repo, url: source.url, secret: source.secret, events }),
      });
      return await answer.json();
    });
    return { data: { hook: hook.id }, options: { event: events } };
  },

  handler: async ({ source, rawEvent }) => {
    const { success } = await verifyRequestSignature({
      request: rawEvent.clone(),
      headerName: "x-signature",
      secret: source.secret,
      algorithm: "sha256",
    });
    if (!success) return { events: [], response: { status: 401, body: { error: "wrong signature" } } };
    const body = await rawEvent.json();
    return {
      events: [{ id: rawEvent.headers.get("x-delivery"), name: body.event, source: "upstream", payload: body }],
      metadata: { lastDelivery: rawEvent.headers.get("x-delivery") },
    };
  },
});

const pushed = {
  name: "pushed",
  title: "On push",
  source: "upstream",
  icon: "webhook",
  parsePayload: (payload) => payload,
  runProperties: (payload) => [{ label: "Commit", text: payload.commit }],
};

export function defineSources(client) {
  const define = (id, trigger, run) => client.defineJob({ id, name: id, version: "1.0.0", trigger, run });

  const received = async (payload, io, ctx) => {
    record(ctx, "received", { repo: payload.repo, commit: payload.commit, registration: ctx.source?.id });
    return payload;
  };
  const alpha = { event: pushed, source: repository, params: { repo: "alpha" }, options: {} };
  define("on-push", new ExternalSourceTrigger(alpha), received);

  const anyRepository = client.defineDynamicTrigger({ id: "any-repository", event: pushed, source: repository });
  define("on-any-push", anyRepository, received);

  // payload {id, repo}
  define("register-trigger", eventTrigger({ name: "register-trigger" }), async (payload, io, ctx) => {
    const registration = await io.registerTrigger("register", anyRepository, payload.id, { repo: payload.repo });
    record(ctx, "registered", { registration: payload.id });
    return registration;
  });
}
