// What both halves of the page share: the key, and requests with it. The key never leaves this tab's session storage
// but in the header of a request to the server that the page came from.

export const byId = (id) => document.getElementById(id);

const key = byId("key");
key.value = sessionStorage.getItem("quire-key") ?? "";
key.addEventListener("input", () => {
  if (key.value) sessionStorage.setItem("quire-key", key.value.trim());
  else sessionStorage.removeItem("quire-key");
});

/** Answers to a request, or throws an Error whose message is the server's and whose status is HTTP's. */
export async function ask(path, { body, signal } = {}) {
  const headers = {};
  if (key.value) headers.authorization = `Bearer ${key.value.trim()}`;
  if (body) headers["content-type"] = "application/json";
  const answer = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  if (answer.ok) return answer;
  const text = await answer.text();
  let message = `The server answered ${answer.status}.`;
  try { message = JSON.parse(text).error.message; } catch { /* not ours, for example of a proxy */ }
  throw Object.assign(new Error(message), { status: answer.status });
}

/** Yields the JSON of each server-sent event until the mark of the end; throws if the stream just stops. */
export async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("The connection ended before the answer did.");
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line === "data: [DONE]") return;
      if (!line.startsWith("data: ")) continue;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

/** Opens the settings at the key, once the server has asked for one. */
export function askForKey() {
  byId("settings").open = true;
  key.focus();
}
