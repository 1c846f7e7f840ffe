// The voting page. Answers arrive as HTML that the server made of Markdown with raw HTML disabled;
// the content security policy allows no script but this folder's.

import { $, Refusal, call, fail, isBusy, meta, onChange, once, release, retryBy, say, turn, waitingFor } from "./page.js";

const SIDES = ["left", "right"];
const KEYS = { 1: "left", 2: "right", 3: "tie", 4: "both_bad" };
const SAID = { left: "answer 1 is better", right: "answer 2 is better", tie: "tie", both_bad: "both are bad" };
const votes = [...document.querySelectorAll("[data-choice]")];

let current = null; // the comparison on the page
let undoUntil = 0;
let drawn = 0; // times that the progress was drawn

function refresh() {
  const open = current && !current.versions;
  for (const button of votes) {
    button.disabled = isBusy() || !open;
    const chosen = current && current.choice === button.dataset.choice;
    if (chosen) button.setAttribute("aria-pressed", "true");
    else button.removeAttribute("aria-pressed");
  }
  const voted = Boolean(current && current.versions);
  $("next").hidden = !voted;
  $("next").disabled = isBusy();
  $("undo").hidden = !voted || current.withdrawn || Date.now() >= undoUntil;
  $("undo").disabled = isBusy();
  $("ask").querySelector("button").disabled = isBusy();
}

function show(comparison) {
  current = comparison;
  $("category").textContent = comparison.category.replaceAll("_", " ");
  $("turns").replaceChildren(...comparison.earlier.map(turn));
  $("turns").hidden = comparison.earlier.length === 0;
  $("question").textContent = comparison.question;
  $("one-version").hidden = !comparison.one_version;
  for (const side of SIDES) {
    const article = $(side);
    article.classList.remove("chosen");
    article.querySelector(".text").innerHTML = comparison[side].html || "<p>(an empty answer)</p>";
    article.querySelector(".cut").hidden = !comparison[side].cut;
    article.querySelector(".version").textContent = "";
    const correction = article.querySelector(".correction");
    correction.hidden = true;
    correction.open = false;
    $(`${side}-correction`).value = comparison[side].text;
    const marking = article.querySelector(".marking");
    marking.hidden = true;
    marking.open = false;
    $(`${side}-marking`).value = comparison[side].text;
    comparison[side].spans = [];
    drawMarks(side);
  }
  $("comparison").hidden = false;
  say("Two answers are ready. Read both, then vote.");
}

function load(question) {
  const waiting = waitingFor();
  say(question ? "Asking two versions…" : "Getting the next comparison…");
  return once(async () => {
    try {
      show(await call("POST", "/next", question || {}));
      if (question) $("own").value = "";
    } finally {
      clearTimeout(waiting);
    }
    progress();
  }, () => load(question));
}

function cast(choice) {
  if (!current || current.versions) return Promise.resolve();
  const voted = current;
  return once(async () => {
    let answer;
    try {
      answer = await call("POST", `/comparisons/${encodeURIComponent(voted.comparison_id)}/vote`, { choice });
    } catch (error) {
      // Nothing more can come of this comparison: voted on in another tab, or too old.
      if (error instanceof Refusal && ["conflict", "not_found"].includes(error.problem.code)) {
        current = null;
        $("comparison").hidden = true;
        fail(error, () => load());
        retryBy("Next comparison");
        return;
      }
      throw error;
    }
    reveal(voted, choice, answer);
  }, () => cast(choice));
}

function reveal(comparison, choice, answer) {
  comparison.versions = answer.versions;
  comparison.choice = choice;
  for (const side of SIDES) {
    $(side).querySelector(".version").textContent = answer.versions[side];
    $(side).classList.toggle("chosen", choice === side);
    $(side).querySelector(".correction").hidden = false;
    $(side).querySelector(".marking").hidden = false;
  }
  tell({ type: "ratchet:vote", comparison_id: comparison.comparison_id, choice, versions: answer.versions });
  draw(answer.progress);
  const quick = answer.faster_than_reading ? " It came faster than both answers can be read, and is marked so." : "";
  say(`Your vote counts: ${SAID[choice]}. Answer 1 is ${answer.versions.left}, answer 2 is ${answer.versions.right}.${quick}`);
  release();
  $("next").focus();
}

function undo(comparisonId) {
  return once(async () => {
    const answer = await call("POST", `/comparisons/${encodeURIComponent(comparisonId)}/undo`);
    if (current && current.comparison_id === comparisonId) current.withdrawn = true;
    draw(answer.progress);
    say("Your vote is taken back. This comparison stays closed, as you know its versions now.");
  }, () => undo(comparisonId));
}

function correct(side) {
  const comparison = current;
  const text = $(`${side}-correction`).value;
  if (!text.trim() || text === comparison[side].text) {
    say("Change the text first: it is still the answer's own.");
    return Promise.resolve();
  }
  return once(async () => {
    await call("POST", `/comparisons/${encodeURIComponent(comparison.comparison_id)}/correction`, { side, text });
    say(`Your correction of answer ${side === "left" ? 1 : 2} is stored. Send another and it replaces this one.`);
  }, () => correct(side));
}

// Tell the page that embeds this one; the browser delivers it to that origin alone.
function tell(result) {
  if (meta("parent")) window.parent.postMessage(result, meta("parent"));
}

// A selection counts UTF-16 units, the service characters.
const characters = (text, units) => [...text.slice(0, units)].length;

function mark(side, liked) {
  const box = $(`${side}-marking`);
  if (!current || box.selectionStart === box.selectionEnd) {
    say("Select a part of the answer first.");
    return;
  }
  const spans = current[side].spans;
  if (spans.length === 20) {
    say("Twenty parts are marked; send them, or remove one.");
    return;
  }
  spans.push({
    start: characters(box.value, box.selectionStart),
    end: characters(box.value, box.selectionEnd),
    liked,
    text: box.value.slice(box.selectionStart, box.selectionEnd),
  });
  drawMarks(side);
}

function drawMarks(side) {
  const spans = current[side].spans;
  const list = $(side).querySelector(".marks");
  list.replaceChildren(...spans.map((span) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Remove";
    button.setAttribute("aria-label", `Remove the mark on: ${span.text.slice(0, 80)}`);
    button.addEventListener("click", () => { spans.splice(spans.indexOf(span), 1); drawMarks(side); });
    item.append(`${span.liked ? "Liked" : "Disliked"}: ${span.text} `, button);
    return item;
  }));
  $(side).querySelector("[data-marks]").disabled = spans.length === 0;
}

function sendMarks(side) {
  const comparison = current;
  const spans = comparison[side].spans.map(({ start, end, liked }) => ({ start, end, liked }));
  return once(async () => {
    await call("POST", `/comparisons/${encodeURIComponent(comparison.comparison_id)}/spans`, { side, spans });
    say(`Your marks on answer ${side === "left" ? 1 : 2} are stored. Send others and they replace these.`);
  }, () => sendMarks(side));
}

// Read beside the comparison, which can be voted on meanwhile: the vote's own answer is newer.
async function progress() {
  const before = drawn;
  try {
    const answer = await call("GET", "/progress");
    if (drawn === before) draw(answer);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    if (error.problem.code === "unauthenticated" && !isBusy()) fail(error);
  }
}

function draw({ today, goal, coverage, history }) {
  drawn += 1;
  $("today").textContent = today;
  $("of").textContent = goal;
  $("goal").value = today;
  $("goal").max = goal;
  const most = Math.max(1, ...Object.values(coverage));
  $("coverage").replaceChildren(...Object.entries(coverage).map(([name, count]) => {
    const item = document.createElement("li");
    const label = document.createElement("label");
    const bar = document.createElement("progress");
    const number = document.createElement("span");
    label.htmlFor = bar.id = `coverage-${name}`;
    number.textContent = count;
    label.append(name.replaceAll("_", " "), number);
    bar.value = count;
    bar.max = most;
    item.append(label, bar);
    return item;
  }));
  $("no-history").hidden = history.length > 0;
  $("history").replaceChildren(...history.map(past));
  if (current && current.versions) {
    const mine = history.find((vote) => vote.comparison_id === current.comparison_id);
    undoUntil = mine ? Date.now() + mine.undo_s * 1000 : 0;
  }
}

function past(vote) {
  const item = document.createElement("li");
  const text = document.createElement("span");
  const what = document.createElement("span");
  text.className = "past";
  text.textContent = vote.question;
  what.className = "what";
  const taken = vote.withdrawn ? " (taken back)" : "";
  what.textContent = `${SAID[vote.choice]}${taken} · 1: ${vote.left}, 2: ${vote.right}`;
  text.append(what);
  item.append(text);
  if (vote.undo_s > 0) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "quiet";
    button.textContent = "Undo";
    button.setAttribute("aria-label", `Undo the vote on: ${vote.question.slice(0, 80)}`);
    button.dataset.until = Date.now() + vote.undo_s * 1000;
    button.addEventListener("click", () => undo(vote.comparison_id));
    item.append(button);
  }
  return item;
}

function tick() {
  const left = Math.ceil((undoUntil - Date.now()) / 1000);
  $("undo-left").textContent = left > 0 ? `(${left} s)` : "";
  if (current && current.versions) refresh();
  for (const button of document.querySelectorAll("[data-until]")) {
    if (Date.now() >= Number(button.dataset.until)) button.remove();
  }
}

function pressed(event) {
  const typing = event.target.closest("input, textarea, select");
  if (!$("keys").checked || typing || event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  const digit = /^(?:Digit|Numpad)([1-4])$/.exec(event.code);
  if (digit) cast(KEYS[digit[1]]);
  else if (event.key.toLowerCase() === "n" && !$("next").hidden) load();
  else if (event.key.toLowerCase() === "u" && !$("undo").hidden) undo(current.comparison_id);
  else return;
  event.preventDefault();
}

for (const button of votes) button.addEventListener("click", () => cast(button.dataset.choice));
for (const button of document.querySelectorAll("[data-side]")) {
  button.addEventListener("click", () => correct(button.dataset.side));
}
for (const button of document.querySelectorAll("[data-mark]")) {
  button.addEventListener("click", () => mark(button.dataset.mark, button.dataset.liked === "true"));
}
for (const button of document.querySelectorAll("[data-marks]")) {
  button.addEventListener("click", () => sendMarks(button.dataset.marks));
}
$("next").addEventListener("click", () => load());
$("undo").addEventListener("click", () => undo(current.comparison_id));
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  load({ question: $("own").value, category: $("own-category").value });
});
onChange(refresh);
document.addEventListener("keydown", pressed);
setInterval(tick, 1000);
load(meta("asked") ? { question: meta("asked") } : undefined);
