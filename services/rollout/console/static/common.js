// What the console's pages share: elements, requests with the key, the form of a key, the dialog of an action.

const TIMEOUT_MS = 20_000;
export const byId = (id) => document.getElementById(id);
const shown = new Map();
let key = sessionStorage.getItem("ratchet-key") ?? "";

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function shape(name, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  made.append(...children);
  return made;
}

// Replace what an element shows only where it differs, so that focus and open details stay.
export function update(id, data, draw) {
  const text = JSON.stringify(data);
  if (shown.get(id) === text) return;
  shown.set(id, text);
  byId(id).replaceChildren(...[draw(data)].flat());
}

export async function ask(path, options = {}) {
  const headers = { accept: "application/json" };
  if (key) headers.authorization = `Bearer ${key}`;
  if (options.body) headers["content-type"] = "application/json";
  const response = await fetch(path, { ...options, headers, signal: AbortSignal.timeout(TIMEOUT_MS) });
  const body = await response.json().catch(() => ({}));
  if (!response.ok) {
    const error = new Error(body.detail ?? `the service answered ${response.status}`);
    error.status = response.status;
    throw error;
  }
  return body;
}

export const percent = (share, digits = 2) => `${(share * 100).toFixed(digits)} %`;
export const moment = (iso) => new Date(iso).toLocaleString();

export function rows(head, lines) {
  return [
    element("thead", {}, element("tr", {}, ...head.map((name) => element("th", { scope: "col" }, name)))),
    element("tbody", {}, ...lines.map((cells) => element("tr", {}, ...cells.map((cell) =>
      cell instanceof Node ? element("td", {}, cell) : element("td", {}, String(cell ?? "–")))))),
  ];
}

export function facts(pairs) {
  return element("dl", {}, ...Object.entries(pairs).filter(([, value]) => value !== "").map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value instanceof Node ? value : String(value)))));
}

// A link to one thing on another page; nothing without a name.
export function linked(where, name) {
  return name ? element("a", { href: `${where}#${encodeURIComponent(name)}` }, name) : "";
}

export function table(label, head, lines) {
  return element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label },
    element("table", {}, ...rows(head, lines)));
}

export function titled(title, ...content) {
  return element("section", {}, element("h3", {}, title), ...content);
}

export function counts(title, found) {
  const lines = Object.entries(found).map(([name, count]) => [name, Number(count).toLocaleString()]);
  return titled(title, lines.length ? table(title, ["What", "Count"], lines) : element("p", { class: "empty" }, "None."));
}

export const number = (value) => typeof value === "number" ? Number(value.toPrecision(4)).toLocaleString() : value;

// Draw the newest, and say beside the title whether it is; ask for a key where one is needed.
export async function show(refresh) {
  const live = byId("live");
  try {
    await refresh();
    live.textContent = `Live, ${new Date().toLocaleTimeString()}`;
    live.className = "";
    byId("key-form").hidden = true;
  } catch (error) {
    byId("key-form").hidden = error.status !== 401 && error.status !== 403;
    live.textContent = `Not up to date: ${error.message}`;
    live.className = "stale";
  }
}

// Draw the newest again and again, but not while nobody sees the page.
export async function keepFresh(refresh, everyMs) {
  for (;;) {
    await show(refresh);
    await new Promise((later) => setTimeout(later, everyMs));
    while (document.hidden) {
      await new Promise((changed) => document.addEventListener("visibilitychange", changed, { once: true }));
    }
  }
}

export function useKey(then) {
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    key = byId("key").value.trim();
    sessionStorage.setItem("ratchet-key", key);
    then();
  });
}

function dialogOfActions() {
  // Enter in the reason takes a form's first submit button, so Cancel is none.
  const cancel = element("button", { type: "button", id: "cancel" }, "Cancel");
  const dialog = element("dialog", { id: "ask", "aria-labelledby": "ask-title" },
    element("form", { method: "dialog" },
      element("h2", { id: "ask-title" }),
      element("p", { id: "ask-text" }),
      element("div", { id: "ask-fields" }),
      element("label", { for: "reason" }, "Why (kept on record)"),
      element("input", { id: "reason", required: "", maxlength: 1000, autocomplete: "off" }),
      element("menu", {}, cancel, element("button", { value: "do", class: "do" }))));
  cancel.addEventListener("click", () => dialog.close("cancel"));
  document.body.append(dialog);
  return dialog;
}

// Ask for a reason, and for the fields before it; `act` gets all of them by their names.
export function confirm(title, text, act, fields = []) {
  const dialog = byId("ask") ?? dialogOfActions();
  byId("ask-title").textContent = title;
  byId("ask-text").textContent = text;
  byId("ask-fields").replaceChildren(...fields);
  dialog.querySelector(".do").textContent = title;
  byId("reason").value = "";
  dialog.returnValue = "cancel";
  dialog.onclose = () => {
    if (dialog.returnValue === "do") act({ ...values(byId("ask-fields")), reason: byId("reason").value });
  };
  dialog.showModal();
  (fields.length ? byId("ask-fields").querySelector("input, select, textarea") : byId("reason")).focus();
}

// The values of named inputs: numbers as numbers, the checked boxes of one name as a list.
function values(container) {
  const found = {};
  for (const input of container.querySelectorAll("input, select, textarea")) {
    if (input.type === "checkbox") {
      found[input.name] ??= [];
      if (input.checked) found[input.name].push(input.value);
    } else {
      found[input.name] = input.type === "number" ? Number(input.value) : input.value;
    }
  }
  return found;
}
