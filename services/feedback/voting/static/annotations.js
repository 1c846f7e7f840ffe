// The annotation page: one item at a time, leased to its rater. Texts arrive as HTML that the server
// made of Markdown with raw HTML disabled.

import { $, Refusal, call, fail, isBusy, onChange, once, retryBy, say, turn, waitingFor } from "./page.js";

const KINDS = {
  preference: {
    asked: "Which answer is better?",
    labels: [["1", "left", "Answer 1 is better"], ["2", "right", "Answer 2 is better"], ["3", "tie", "Tie"],
      ["4", "both_bad", "Both are bad"]],
  },
  rating: {
    asked: "How good is the answer?",
    labels: [["1", "1", "Very bad"], ["2", "2", "Bad"], ["3", "3", "Middling"], ["4", "4", "Good"],
      ["5", "5", "Very good"]],
  },
};

let current = null; // the item on the page

const path = (item, what) => `/annotations/${encodeURIComponent(item.item_id)}/${what}`;

function refresh() {
  for (const button of [...$("labels").children, $("skip")]) button.disabled = isBusy() || !current;
}

function show(item) {
  current = item;
  const kind = KINDS[item.kind];
  $("asked").textContent = kind.asked;
  $("category").textContent = item.category.replaceAll("_", " ") + (item.high_stakes ? " · high stakes" : "");
  $("turns").replaceChildren(...item.turns.map(turn));
  for (const number of [1, 2]) {
    const answer = item.answers[number - 1];
    const article = $(`answer-${number}`);
    article.hidden = !answer;
    if (!answer) continue;
    article.querySelector(".text").innerHTML = answer.html || "<p>(an empty answer)</p>";
    article.querySelector(".cut").hidden = !answer.cut;
    article.querySelector(".correction").open = false;
    $(`correction-${number}`).value = answer.text;
  }
  const names = Object.fromEntries(kind.labels.map(([, label, text]) => [label, text]));
  const said = Object.entries(item.given).map(([label, times]) => `${names[label]} (${times})`);
  $("adjudication").hidden = said.length === 0;
  $("said").textContent = said.join(", ");
  $("labels").replaceChildren(...kind.labels.map(labelButton));
  $("guidelines").hidden = !item.guidelines;
  $("guidelines-text").innerHTML = item.guidelines;
  $("item").hidden = false;
  say("An item is ready. Read it, then label it.");
}

function labelButton([key, label, text]) {
  const button = document.createElement("button");
  const shown = document.createElement("kbd");
  button.type = "button";
  button.dataset.label = label;
  button.setAttribute("aria-keyshortcuts", key);
  shown.setAttribute("aria-hidden", "true");
  shown.textContent = key;
  button.append(shown, ` ${text}`);
  button.addEventListener("click", () => give(label));
  return button;
}

function load() {
  const waiting = waitingFor();
  say("Getting the next item…");
  return once(async () => {
    try {
      const item = await call("POST", "/annotations/next");
      show(item);
      draw(item.progress);
    } catch (error) {
      current = null;
      $("item").hidden = true;
      throw error;
    } finally {
      clearTimeout(waiting);
    }
  }, load);
}

// Send something about the item on the page, then get the next one.
function finish(what, body, done) {
  if (!current) return Promise.resolve();
  const item = current;
  return once(async () => {
    try {
      draw((await call("POST", path(item, what), body)).progress);
    } catch (error) {
      // Nothing more can come of this item: labelled in another tab, or by others meanwhile.
      if (error instanceof Refusal && ["conflict", "not_found"].includes(error.problem.code)) {
        current = null;
        $("item").hidden = true;
        fail(error, load);
        retryBy("Next item");
        return;
      }
      throw error;
    }
    current = null;
    say(done);
  }, () => finish(what, body, done)).then(() => { if (!current && $("error").hidden) return load(); });
}

function give(label) {
  if (!current) return Promise.resolve();
  const corrections = current.answers.map((answer, index) => {
    const text = $(`correction-${index + 1}`).value;
    return text.trim() && text !== answer.text ? text : null;
  });
  return finish("label", { label, corrections }, "Your label is stored.");
}

function draw({ mine, labelled, needed, disputed, seconds_left: left, agreement }) {
  $("given").textContent = labelled;
  $("needed").textContent = needed;
  $("labelled").value = labelled;
  $("labelled").max = Math.max(needed, 1);
  $("mine").textContent = mine;
  $("disputed").textContent = disputed;
  $("left").textContent = left === null ? "–" : duration(left);
  $("raw").textContent = agreement.raw === null ? "–" : `${Math.round(agreement.raw * 100)} %`;
  const within = agreement.low === null ? "" : ` (${agreement.low.toFixed(2)} to ${agreement.high.toFixed(2)})`;
  $("alpha").textContent = agreement.alpha === null ? "–" : agreement.alpha.toFixed(2) + within;
}

function duration(seconds) {
  if (seconds < 90 * 60) return `${Math.ceil(seconds / 60)} min`;
  return `${Math.ceil(seconds / 3600)} h`;
}

function pressed(event) {
  const typing = event.target.closest("input, textarea, select");
  if (!$("keys").checked || typing || event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  const digit = /^(?:Digit|Numpad)([1-5])$/.exec(event.code);
  const found = digit && $("labels").querySelector(`[aria-keyshortcuts="${digit[1]}"]`);
  if (found) give(found.dataset.label);
  else if (event.key.toLowerCase() === "s") finish("skip", {}, "Others get this item.");
  else return;
  event.preventDefault();
}

$("skip").addEventListener("click", () => finish("skip", {}, "Others get this item."));
onChange(refresh);
document.addEventListener("keydown", pressed);
load();
