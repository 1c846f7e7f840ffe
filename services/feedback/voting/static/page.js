// What the raters' pages share: calls of the service, refusals in plain words, one request at a time.

const SLOW_MS = 8000;
const DEADLINE_MS = 330000; // longer than the service waits for the router

let busy = false; // a request that changes something is under way
let again = null; // what "Try again" does
let changed = () => {};

export const $ = (id) => document.getElementById(id);
export const meta = (name) => document.querySelector(`meta[name="${name}"]`)?.content ?? "";

export class Refusal extends Error {
  constructor(problem) {
    super(problem.what);
    this.problem = problem;
  }
}

export async function call(method, path, body) {
  let response;
  try {
    response = await fetch(meta("base") + "/api" + path, {
      method,
      headers: {
        "content-type": "application/json",
        "x-csrf-token": meta("csrf-token"),
        ...(meta("invite") && { "x-ratchet-invite": meta("invite") }),
      },
      body: method === "GET" ? undefined : JSON.stringify(body || {}),
      signal: AbortSignal.timeout(DEADLINE_MS),
    });
  } catch {
    throw new Refusal({
      what: "The server cannot be reached.",
      remedy: "See whether you are online, then press Try again. Nothing is lost.",
    });
  }
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  throw new Refusal({
    what: "The server answered in a way this page does not know.",
    remedy: "Load the page again.",
    ...answer,
  });
}

export const say = (text) => { $("status").textContent = text; };

export const isBusy = () => busy;

// What a page redraws when a request begins and ends.
export const onChange = (refresh) => { changed = refresh; };

export function fail(error, retry) {
  if (!(error instanceof Refusal)) throw error;
  const { what, remedy, code } = error.problem;
  say("");
  $("error-what").textContent = what;
  $("error-remedy").textContent = remedy || "";
  again = code === "unauthenticated" ? () => location.reload() : retry;
  retryBy(code === "unauthenticated" ? "Load the page again" : "Try again");
  $("error").hidden = false;
  $("retry").focus();
}

export const retryBy = (text) => { $("retry").textContent = text; };

// One request at a time: a double click, a held key and a second press change nothing.
export async function once(work, retry) {
  if (busy) return;
  busy = true;
  $("error").hidden = true;
  changed();
  try {
    await work();
  } catch (error) {
    release();
    fail(error, retry);
  } finally {
    release();
  }
}

// The request under way is done: what it disabled can be used, and gets the focus.
export function release() {
  busy = false;
  changed();
}

// One turn of a conversation; its HTML is the server's.
export function turn({ role, html }) {
  const item = document.createElement("li");
  const who = document.createElement("span");
  const text = document.createElement("div");
  item.className = `turn ${role === "assistant" ? "assistant" : "user"}`;
  who.className = "what";
  who.textContent = role;
  text.className = "text";
  text.innerHTML = html;
  item.append(who, text);
  return item;
}

export const waitingFor = () => setTimeout(
  () => say("This takes longer than usual. You may wait, or come back later: nothing is lost."), SLOW_MS);

$("retry").addEventListener("click", () => again && again());
$("sign-out").addEventListener("click", () => once(async () => {
  await call("POST", "/sign-out");
  location.reload();
}, () => location.reload()));
// The back button may bring the page as it was, with work that is done by now.
window.addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
