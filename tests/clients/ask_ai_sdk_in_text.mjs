// Vercel AI SDK: a text, whole and streamed, of an engine whose model calls no tools.

import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, streamText, tool } from "ai";

const settings = { baseURL: process.env.CLIENT_URL, apiKey: "none" };
const name = process.env.CLIENT_MODEL;
const openai = createOpenAI(settings);
const models = {
  responses: openai(name),
  chat: openai.chat(name),
  compatible: createOpenAICompatible({ ...settings, name: "ratchet" })(name),
};
const tools = {
  get_weather: tool({
    description: "The weather of a city.",
    inputSchema: jsonSchema({ type: "object", properties: { city: { type: "string" } } }),
  }),
};

const said = {};
for (const [kind, model] of Object.entries(models)) {
  const asked = { model, prompt: "Where is my parcel?", tools, temperature: 0, maxOutputTokens: 24 };
  const whole = await generateText(asked);
  said[kind] = [whole.text, await streamText(asked).text];
}
console.log(JSON.stringify(said));
