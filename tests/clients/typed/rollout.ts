// An operator's tool of TypeScript against the control API, typed by what openapi-typescript made.

import createClient from "openapi-fetch";
import { check, headers, setting, until } from "./common.js";
import type { paths } from "./rollout_api.js";

const operator = createClient<paths>({
  baseUrl: setting("ROLLOUT_URL"),
  headers: headers("OPERATOR_KEY"),
});
const reason = "a typed client asks";
const model = "typed";
const version = `${model}-v1.0`;

const registered = await operator.POST("/v1/versions", {
  body: { version, model, base: "base", reason, settings: { system: "Be kind." } },
});
// The suite of Python may have been there before.
check(registered.data?.record.version === version || registered.error?.status === 409, "a version", registered.error);

const served = await until("it is stable", async () => {
  const { data } = await operator.GET("/v1/versions/{version}", { params: { path: { version } } });
  return data?.state === "stable" ? data : undefined;
});
check("settings" in served.record && served.record.settings?.system === "Be kind.", "its record", served);
check(served.deployments.some((one) => one.role === "stable"), "where it serves", served);

const listed = await operator.GET("/v1/versions", { params: { query: { model } } });
check(listed.data?.versions.map((one) => one.version).includes(version), "a list", listed.error);

const decided = await operator.GET("/v1/rollouts/{rollout_id}/decisions", {
  params: { path: { rollout_id: model } },
});
check(decided.data?.decisions[0]?.kind === "stable_set", "a decision", decided.data);
check(decided.data.decisions[0].sentence.includes(version), "its sentence", decided.data);

const explained = await operator.POST("/v1/strategies/explain", {
  body: { strategy: "default", traffic: { requests_per_s: 5 } },
});
const hours: number | null | undefined = explained.data?.steps[0]?.takes_s;
check(hours !== undefined, "a plan", explained.error);

const issued = await operator.POST("/v1/keys", { body: { scopes: ["feedback"], reason } });
check(issued.data?.key.startsWith("rk_"), "a key", issued.error);
const keys = await operator.GET("/v1/keys");
check(keys.data?.keys.some((one) => one.key_id === issued.data?.key_id), "keys", keys.error);

const unknown = await operator.GET("/v1/rollouts/current", { params: { query: { model } } });
check(unknown.error?.errors?.[0]?.field === "model", "a model without a rollout", unknown.error);
const wrong = await operator.POST("/v1/strategies/explain", { body: { strategy: "none-such" } });
const nobody = createClient<paths>({ baseUrl: setting("ROLLOUT_URL") });
const stranger = await nobody.GET("/v1/versions");

// What the compiler must refuse. Nothing here runs.
export async function refusedByTheCompiler(): Promise<void> {
  // @ts-expect-error there is no such command
  await operator.POST("/v1/rollouts/{rollout_id}/{verb}", { params: { path: { rollout_id: "r", verb: "stop" } } });
  // @ts-expect-error a registration says why
  await operator.POST("/v1/versions", { body: { version, model } });
  // @ts-expect-error a version has no such field
  served.weight;
  // @ts-expect-error a weight is a number
  (await operator.GET("/v1/rollouts")).data?.rollouts[0]?.weight.trim();
}

console.log(
  JSON.stringify({
    404: unknown.error?.code,
    422: wrong.error?.code,
    401: stranger.error?.code,
  }),
);
