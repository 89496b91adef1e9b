// The chat: a list of messages, one request at a time, its text as it comes.

import { ask, askForKey, byId, events } from "./api.js";

const [log, form, prompt, send, stop] = ["log", "form", "prompt", "send", "stop"].map(byId);
const SETTINGS = ["temperature", "top_p", "max_tokens", "seed"];
let messages = [];
let running = null; // an AbortController while an answer comes
let model = null;

/** The id of the answer that is being made, by which the picture of the cache knows it. */
export let currentId = null;

async function showModel() {
  try {
    [model] = (await (await ask("v1/models")).json()).data;
    const defaults = model.default_sampling_params ?? {};
    byId("model").textContent = `${model.id} · up to ${model.max_model_len.toLocaleString()} tokens`;
    document.title = `${model.id} · Quire`;
    byId("temperature").placeholder = defaults.temperature ?? 1;
    byId("top_p").placeholder = defaults.top_p ?? 1;
    byId("max_tokens").max = model.max_model_len;
  } catch (error) {
    byId("model").textContent = error.status === 401 ? "needs an API key" : error.message;
    if (error.status === 401) askForKey();
  }
}

function element(kind, className, text = "") {
  const made = document.createElement(kind);
  made.className = className;
  made.textContent = text;
  return made;
}

/** Adds a message to the page; returns its element. */
function addTurn(role, text) {
  byId("empty")?.remove();
  const turn = element("div", `turn ${role}`);
  turn.append(element("span", "hidden", role === "user" ? "You: " : "Model: "), element("div", "text", text));
  log.append(turn);
  log.scrollTop = log.scrollHeight;
  return turn;
}

function note(turn, words, isAlarm = false) {
  turn.append(element("div", isAlarm ? "note alarm" : "note", words));
}

function settings() {
  const given = {};
  for (const name of SETTINGS) {
    const value = byId(name).value;
    if (value !== "") given[name] = Number(value);
  }
  return given;
}

/** Writes pieces of an answer where the reader is; scrolls along only for who is at the end. */
function write(turn, piece) {
  const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
  turn.querySelector(".text").append(piece);
  if (isAtEnd) log.scrollTop = log.scrollHeight;
}

function summary(usage, reason, startMs, firstMs) {
  const words = [];
  if (usage) {
    const seconds = (performance.now() - firstMs) / 1000;
    words.push(`${usage.completion_tokens} tokens`);
    if (usage.completion_tokens > 1) words.push(`${((usage.completion_tokens - 1) / seconds).toFixed(1)} / s`);
    words.push(`first after ${((firstMs - startMs) / 1000).toFixed(2)} s`);
    words.push(`${usage.prompt_tokens_details?.cached_tokens ?? 0} of ${usage.prompt_tokens} prompt tokens were cached`);
  }
  if (reason === "length") words.push("ended at the limit of tokens");
  return words.join(" · ");
}

async function answer() {
  const system = byId("system").value.trim();
  const asked = system ? [{ role: "system", content: system }, ...messages] : messages;
  const turn = addTurn("assistant running", "");
  const startMs = performance.now();
  let text = "", usage = null, reason = null, firstMs = null;
  running = new AbortController();
  showRunning(true);
  try {
    const body = { model: model?.id, messages: asked, stream: true, stream_options: { include_usage: true }, ...settings() };
    for await (const event of events(await ask("v1/chat/completions", { body, signal: running.signal }))) {
      currentId = event.id;
      usage = event.usage ?? usage;
      const choice = event.choices[0];
      reason = choice?.finish_reason ?? reason;
      const piece = choice?.delta?.content;
      if (piece) {
        firstMs ??= performance.now();
        text += piece;
        write(turn, piece);
      }
    }
    note(turn, summary(usage, reason, startMs, firstMs ?? performance.now()));
  } catch (error) {
    if (error.name === "AbortError") note(turn, "stopped");
    else note(turn, error.message, true);
    if (error.status === 401) askForKey();
  } finally {
    turn.classList.remove("running");
    running = currentId = null;
    showRunning(false);
  }
  if (text) messages.push({ role: "assistant", content: text });
  else messages.pop(); // what was not answered is not part of the conversation
}

function showRunning(isRunning) {
  const hadFocus = [send, stop].includes(document.activeElement);
  send.hidden = isRunning;
  stop.hidden = !isRunning;
  if (hadFocus) (isRunning ? stop : prompt).focus();
}

function fitPrompt() {
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight + 2}px`;
  send.disabled = !prompt.value.trim();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = prompt.value.trim();
  if (!text || running || !form.reportValidity()) return;
  prompt.value = "";
  fitPrompt();
  messages.push({ role: "user", content: text });
  addTurn("user", text);
  answer();
});
prompt.addEventListener("input", fitPrompt);
prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
stop.addEventListener("click", () => running?.abort());
byId("new").addEventListener("click", () => {
  running?.abort();
  messages = [];
  log.replaceChildren();
  prompt.focus();
});
byId("key").addEventListener("change", showModel);
for (const view of ["chat", "cache"]) {
  byId(`view-${view}`).addEventListener("click", () => {
    document.body.dataset.view = view;
    for (const other of ["chat", "cache"]) byId(`view-${other}`).setAttribute("aria-pressed", String(other === view));
  });
}
fitPrompt();
showModel();
