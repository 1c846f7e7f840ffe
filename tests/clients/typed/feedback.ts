// A product of TypeScript against the feedback service, typed by what openapi-typescript made.

import createClient from "openapi-fetch";
import { check, headers, setting, until } from "./common.js";
import type { components, paths } from "./feedback_api.js";

type Schemas = components["schemas"];
type Type = Schemas["FeedbackType"];
type Signal = Schemas["SignalType"];

const client = (key: string) =>
  createClient<paths>({ baseUrl: setting("FEEDBACK_URL"), headers: headers(key) });
const product = client("PRODUCT_KEY");
const operator = client("OPERATOR_KEY");
const trace_id = setting("TRACE_ID");

// A type that the service gets and this suite does not send is an error of the compiler.
const values: Record<Type, Schemas["Submission"]["value"]> = {
  thumbs_up: null,
  thumbs_down: null,
  rating: 4,
  text_correction: { original: "", corrected: "Print the label from the account page." },
  preference: { chosen: "Print it.", rejected: "Ask somebody." },
  demonstration: "Open the account page and print the label.",
  comment: "The label was hard to find.",
};
const signals: Record<Signal, Schemas["SignalSubmission"]["value"]> = {
  regenerate: null,
  copy: null,
  edit_kept: 0.5,
  abandon: null,
  follow_up: "And where do I bring it?",
};

async function stateOf(feedback_id: string) {
  const { data, error } = await product.GET("/v1/feedback/{feedback_id}", {
    params: { path: { feedback_id }, query: { trace_id } },
  });
  if (error) check(error.code === "not_found", "a status", error);
  return data;
}

async function feedbackOfEachType(): Promise<Map<Type, string>> {
  const sent = new Map<Type, string>();
  for (const type of Object.keys(values) as Type[]) {
    const { data, error } = await product.POST("/v1/feedback", {
      body: { trace_id, type, value: values[type], user_id: `of-${type}` },
    });
    check(data, `feedback of type ${type} is taken`, error);
    check(data.trace_id === trace_id && data.revision === 0, "a receipt", data);
    sent.set(type, data.feedback_id);
  }
  for (const type of Object.keys(signals) as Signal[]) {
    const { data, error } = await product.POST("/v1/feedback", {
      body: { trace_id, type, value: signals[type], user_id: `of-${type}` },
    });
    check(data, `a signal of type ${type} is taken`, error);
  }
  return sent;
}

async function readBack(sent: Map<Type, string>): Promise<void> {
  for (const [type, feedback_id] of sent) {
    const found = await until(`${type} counts`, async () => {
      const status = await stateOf(feedback_id);
      return status?.state === "counted" ? status : undefined;
    });
    const revision = found.revisions[0];
    check(revision?.type === type && revision.counts, "its revision", found);
    const value = revision.value;
    if (type === "text_correction") {
      check(value !== null && typeof value === "object" && "corrected" in value, "value", value);
      check(value.corrected.startsWith("Print the label"), "a correction's text", value);
    }
    check(found.counted?.version === setting("VERSION"), "what it counts for", found);
  }
}

async function examples(): Promise<void> {
  const { data, error } = await operator.GET("/v1/examples", {
    params: { query: { kind: "any", limit: 10 } },
  });
  check(data, "a page of examples", error);
  const row = data.examples.find((one) => "feedback" in one && one.trace_id === trace_id);
  check(row !== undefined && "feedback" in row, "the example", data);
  const types = new Set(row.feedback.map((one) => one.type));
  for (const type of Object.keys(values) as Type[]) check(types.has(type), type, row);
  const turn: string | undefined = row.messages[0]?.content;
  check(turn !== undefined, "its question", row);

  const exported = await operator.GET("/v1/examples/export", {
    params: { query: { kind: "any", format: "jsonl" } },
    parseAs: "text",
  });
  const text: string | undefined = exported.data;
  check(text?.includes(trace_id), "the export", exported.error);
}

async function batchAndWithdrawal(sent: Map<Type, string>): Promise<void> {
  const { data } = await product.POST("/v1/feedback/batch", {
    body: {
      items: [
        { trace_id, type: "rating", value: 9, user_id: "of-batch" },
        { trace_id, type: "comment", value: "Thanks.", user_id: "of-batch" },
      ],
    },
  });
  const [refused, stored] = data?.results ?? [];
  check(refused?.status === 422 && refused.error?.errors?.[0]?.field === "value", "refused", data);
  check(stored?.status === 202 && stored.feedback_id, "stored", data);

  const feedback_id = sent.get("thumbs_up") ?? "";
  const withdrawn = await product.DELETE("/v1/feedback/{feedback_id}", {
    params: {
      path: { feedback_id },
      query: { trace_id, type: "thumbs_up", user_id: "of-thumbs_up" },
    },
  });
  check(withdrawn.data, "a withdrawal", withdrawn.error);
  await until("it is withdrawn", async () =>
    (await stateOf(feedback_id))?.state === "withdrawn" ? true : undefined,
  );
}

async function refusals(): Promise<Record<number, string>> {
  const thumb = { trace_id, type: "thumbs_up", user_id: "u" } as const;
  const rating = { ...thumb, type: "rating", value: 9 } as const;
  const path = { feedback_id: "nobody-gave-it" };
  const limited = client("LIMITED_KEY");
  const send = () => limited.POST("/v1/feedback", { body: thumb });
  const answers = [
    await client("WRONG_KEY").POST("/v1/feedback", { body: thumb }),
    await product.GET("/v1/examples", { params: { query: { kind: "any" } } }),
    await product.GET("/v1/feedback/{feedback_id}", { params: { path } }),
    await product.POST("/v1/feedback", { body: rating }),
    await until("a key has sent more than it may", async () => {
      const answer = await send();
      return answer.error && answer;
    }),
  ];
  const said: Record<number, string> = {};
  for (const { error, response } of answers) {
    check(error && error.status === response.status, "a problem", error);
    const field: string | undefined = error.errors?.[0]?.remedy;
    if (response.status === 422) check(field, "what to do about the field", error);
    said[response.status] = error.code;
  }
  return said;
}

// What the compiler must refuse. Nothing here runs.
export async function refusedByTheCompiler(): Promise<void> {
  // @ts-expect-error there is no such type of feedback
  await product.POST("/v1/feedback", { body: { trace_id, type: "thumb_up" } });
  // @ts-expect-error a field that is none
  await product.POST("/v1/feedback", { body: { trace_id, type: "thumbs_up", user: "u" } });
  // @ts-expect-error the trace is missing
  await product.POST("/v1/feedback", { body: { type: "thumbs_up" } });
  // @ts-expect-error a correction's text is one
  await product.POST("/v1/feedback", { body: { trace_id, type: "text_correction", value: { corrected: 1 } } });
  // @ts-expect-error the kind of examples is missing
  await operator.GET("/v1/examples", { params: { query: { limit: 5 } } });
  // @ts-expect-error there is no such path
  await product.GET("/v1/feedbacks");
  const { data, error } = await product.POST("/v1/feedback", { body: { trace_id, type: "copy" } });
  // @ts-expect-error a receipt has no such field
  data?.feedbackId;
  // @ts-expect-error a problem's status is a number
  error?.status.startsWith("4");
}

const sent = await feedbackOfEachType();
await readBack(sent);
await examples();
await batchAndWithdrawal(sent);
console.log(JSON.stringify({ types: [...sent.keys()], refusals: await refusals() }));
