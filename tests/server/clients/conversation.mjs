// A conversation with the npm client `openai`, as its users write it: node conversation.mjs BASE_URL MODEL
import assert from "node:assert/strict";
import OpenAI from "openai";

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "any", maxRetries: 0 });
const messages = [{ role: "user", content: "Once upon a time" }];
const plain = { model, messages, max_tokens: 16, temperature: 0 };
const tool = {
  type: "function",
  function: {
    name: "weather",
    parameters: {
      type: "object",
      properties: { city: { type: "string", maxLength: 8 } },
      required: ["city"],
      additionalProperties: false,
    },
  },
};
const schema = {
  type: "object",
  properties: { age: { type: "integer", minimum: 0, maximum: 99 } },
  required: ["age"],
  additionalProperties: false,
};

const tests = {
  async models() {
    const names = [];
    for await (const found of client.models.list()) names.push(found.id);
    assert.deepEqual(names, [model]);
    assert.equal((await client.models.retrieve(model)).id, model);
  },

  async chat_whole_and_streamed() {
    const whole = await client.chat.completions.create(plain);
    assert.ok(whole.usage.completion_tokens > 0 && whole.usage.completion_tokens <= 16);
    const stream = await client.chat.completions.create({ ...plain, stream: true, stream_options: { include_usage: true } });
    let text = "", usage = null;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta?.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, whole.choices[0].message.content);
    assert.deepEqual(usage, whole.usage);
  },

  async the_stream_helper_assembles_the_answer() {
    const deltas = [];
    const runner = client.chat.completions.stream(plain).on("content", (delta) => deltas.push(delta));
    const final = await runner.finalChatCompletion();
    assert.equal(deltas.join(""), final.choices[0].message.content);
  },

  async a_conversation_goes_on() {
    const said = [...messages];
    for (const question of ["And then?", "Why?", "What came of it?"]) {
      const answer = await client.chat.completions.create({ ...plain, messages: said });
      said.push(answer.choices[0].message, { role: "user", content: question });
    }
    assert.equal(said.length, 7);
  },

  async tools_forced_and_streamed() {
    const asked = { ...plain, max_tokens: 64, tools: [tool], tool_choice: "required" };
    const whole = (await client.chat.completions.create(asked)).choices[0];
    const call = whole.message.tool_calls[0];
    assert.equal(whole.finish_reason, "tool_calls");
    assert.deepEqual(Object.keys(JSON.parse(call.function.arguments)), ["city"]);
    const streamed = (await client.chat.completions.stream(asked).finalChatCompletion()).choices[0].message.tool_calls[0];
    assert.deepEqual(streamed.function, call.function);
    const answered = [...messages, whole.message, { role: "tool", tool_call_id: call.id, content: "sunny" }];
    assert.ok(await client.chat.completions.create({ ...plain, messages: answered, tools: [tool] }));
  },

  async structured_output() {
    const response_format = { type: "json_schema", json_schema: { name: "person", schema, strict: true } };
    const parsed = await client.chat.completions.parse({ ...plain, max_tokens: 64, response_format });
    assert.ok(Number.isInteger(JSON.parse(parsed.choices[0].message.content).age));
  },

  async responses_whole_and_streamed() {
    const asked = { model, input: "Once upon a time", max_output_tokens: 16, temperature: 0 };
    const whole = await client.responses.create(asked);
    let text = "", kinds = [];
    for await (const event of await client.responses.create({ ...asked, stream: true })) {
      kinds.push(event.type);
      if (event.type === "response.output_text.delta") text += event.delta;
    }
    assert.equal(text, whole.output_text);
    assert.equal(kinds[0], "response.created");
  },

  async completions_and_logprobs() {
    const asked = { model, prompt: "Once upon", max_tokens: 8, temperature: 0, logprobs: 2, echo: true };
    const choice = (await client.completions.create(asked)).choices[0];
    assert.ok(choice.text.startsWith("Once upon"));
    assert.equal(choice.logprobs.token_logprobs.length, choice.logprobs.tokens.length);
    assert.equal(choice.logprobs.token_logprobs[0], null);
  },

  async embeddings() {
    const made = await client.embeddings.create({ model, input: ["one", "two"] }); // asks for base64 by itself
    assert.equal(made.data.length, 2);
    for (const { embedding } of made.data) {
      const length = Math.hypot(...embedding);
      assert.ok(Math.abs(length - 1) < 1e-3, `length ${length}`);
    }
  },

  async errors_have_their_classes() {
    await assert.rejects(client.chat.completions.create({ ...plain, model: "another" }), OpenAI.NotFoundError);
    await assert.rejects(client.chat.completions.create({ ...plain, max_tokens: -1 }), OpenAI.BadRequestError);
  },

  async a_stream_that_is_left_ends() {
    const stream = await client.chat.completions.create({ ...plain, max_tokens: 400, stream: true });
    for await (const chunk of stream) if (chunk.choices[0].delta.content) break;
    stream.controller.abort();
  },
};

for (const [name, test] of Object.entries(tests)) {
  await test();
  console.log(`ok ${name}`);
}
