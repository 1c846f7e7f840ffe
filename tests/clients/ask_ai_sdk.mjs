// Vercel AI SDK: @ai-sdk/openai (the Responses API, its default, and chat), @ai-sdk/openai-compatible.

import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, Output, stepCountIs, streamText, tool } from "ai";

const settings = { baseURL: process.env.CLIENT_URL, apiKey: "none" };
const name = process.env.CLIENT_MODEL;
const openai = createOpenAI(settings);
const models = {
  responses: openai(name),
  chat: openai.chat(name),
  compatible: createOpenAICompatible({
    ...settings,
    name: "ratchet",
    supportsStructuredOutputs: true,
  })(name),
};
const text = { type: "string" };
const tools = {
  get_weather: tool({
    description: "The weather of a city.",
    inputSchema: jsonSchema({ type: "object", properties: { city: text }, required: ["city"] }),
    execute: async ({ city }) => `21 degrees in ${city}`,
  }),
};
const weather = jsonSchema({
  type: "object",
  properties: { city: text, celsius: { type: "integer" } },
  required: ["city", "celsius"],
  additionalProperties: false,
});

const said = {};
for (const [kind, model] of Object.entries(models)) {
  const stopWhen = stepCountIs(3);
  const question = {
    model,
    prompt: "How warm are both, Paris and Rome?",
    tools,
    stopWhen,
    providerOptions: { openai: { user: "u1" }, ratchet: { user: "u1" } },
  };
  const whole = await generateText(question);
  const streamed = streamText(question);
  const parsed = await generateText({
    model,
    prompt: "How warm is Paris?",
    output: Output.object({ schema: weather }),
  });
  said[kind] = {
    texts: [whole.text, await streamed.text],
    calls: whole.steps[0].toolCalls.map((call) => call.input),
    parsed: parsed.output,
    traces: whole.steps.map((step) => step.response.id),
  };
}
console.log(JSON.stringify(said));
