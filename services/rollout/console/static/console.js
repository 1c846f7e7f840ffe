// Console's page of rollouts: polls the JSON API and draws what it says. No dependency.
import {
  ask, byId, confirm, element, keepFresh, moment, percent, rows, shape, show, update, useKey,
} from "./common.js";

const POLL_MS = 2000;
const GAINS_EVERY_MS = 60_000;
const MAX_WAITING = 3;
const WORDS = {
  pause: ["Pause", "The weight stays; the judge looks on."],
  resume: ["Resume", "Goes on where it stopped; a gate is passed."],
  promote: ["End this step", "The next step begins now; the judge's word still comes first."],
  abort: ["Abort", "Everybody is back on stable in a second, and the candidate is rejected."],
  retry: ["Start again", "The same candidate begins a new rollout, without evidence."],
};
let present = null;

function sentence(rollout) {
  if (!rollout) return "This model has had no rollout yet. A released version starts one by itself, or ratchet rollout start does.";
  const share = percent(rollout.weight / 10000, rollout.weight % 100 ? 2 : 0);
  if (rollout.ended_at) return `${rollout.candidate}: ${rollout.result}. ${rollout.reason}`;
  const step = `step ${rollout.step + 1} of ${rollout.steps}, ${rollout.step_name}`;
  return `${rollout.candidate} gets ${share} of the users (${step}). ${rollout.reason}`;
}

function shadow(step, ended) {
  if (!step) return "none";
  const answers = step.answers;
  if (!answers) return ended ? "never begun" : `not begun; ${step.minimum} answers are needed`;
  const counts = `${answers.answered} of ${step.minimum} answers, ${answers.failed} failed, ${answers.expired} expired`;
  const shown = Object.entries(answers.differences).map(([name, value]) =>
    `${name.replaceAll("_", " ")} ${Number(value.toPrecision(2))}`);
  return [counts, ...shown].join("; ");
}

function facts(rollout) {
  const rows = {
    Phase: rollout.phase,
    Outcome: rollout.result || "still open",
    "Last look": rollout.outcome ?? (rollout.ended_at ? "there was none" : "none yet"),
    Stable: rollout.stable,
    Strategy: rollout.strategy,
    Requests: `${rollout.requests.candidate} candidate, ${rollout.requests.stable} stable`,
    Shadow: shadow(rollout.shadow, rollout.ended_at),
    "Waits for a person": rollout.needs_person ? "yes" : "no",
    Started: moment(rollout.started_at),
  };
  return Object.entries(rows).map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value)),
  );
}

function buttons(rollout) {
  return rollout.actions.map((action) => {
    const button = element("button", { type: "button" }, WORDS[action][0]);
    if (action === "abort") button.className = "danger";
    button.addEventListener("click", () =>
      confirm(...WORDS[action], ({ reason }) => act(rollout.rollout_id, action, reason)));
    return button;
  });
}

async function act(rollout, action, reason) {
  const answer = byId("answer");
  try {
    const path = `v1/rollouts/${encodeURIComponent(rollout)}/${action}`;
    await ask(path, { method: "POST", body: JSON.stringify({ reason }) });
    answer.textContent = "";
  } catch (error) {
    answer.textContent = `Not done: ${error.message}`;
  }
  await refresh();
}

// The main picture: the difference over time with its confidence sequence, against the margin.
function intervalFigure(series) {
  const [width, height, left, right, top, bottom] = [340, 150, 8, 62, 10, 20];
  const points = series.points;
  const last = points.at(-1);
  const reach = Math.max(
    ...points.slice(-Math.ceil(points.length * 0.8)).flatMap((p) => [Math.abs(p.difference), Math.abs(p.allowed)]),
    Math.min(Math.max(Math.abs(last.low), Math.abs(last.high)), 1),
    0.001,
  ) * 1.15;
  const x = (index) =>
    points.length > 1 ? left + (index / (points.length - 1)) * (width - left - right) : width - right;
  const y = (value) =>
    top + ((reach - Math.max(-reach, Math.min(reach, value))) / (2 * reach)) * (height - top - bottom);
  const path = (values) => values.map((value, index) => `${index ? "L" : "M"}${x(index)},${y(value)}`).join("");
  const lows = points.map((p, index) => `L${x(index)},${y(p.low)}`).reverse().join("");
  const end = x(points.length - 1) + 14;
  const label = (value, text) => shape("text", { x: end + 8, y: y(value) + 4 }, text);
  const apart = Math.abs(y(last.allowed) - y(0)) > 12;
  const spread = `${percent(last.low)} to ${percent(last.high)}`;
  const picture = shape(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${series.label}: difference ${percent(last.difference)}, between ${spread}, margin ${percent(last.allowed)}` },
    shape("line", { class: "axis", x1: left, x2: width - right + 20, y1: height - bottom, y2: height - bottom }),
    shape("line", { class: "zero", x1: left, x2: width - right + 20, y1: y(0), y2: y(0) }),
    shape("path", { class: "band", d: `${path(points.map((p) => p.high))}${lows}Z` }),
    shape("path", { class: "margin", fill: "none", d: path(points.map((p) => p.allowed)) }),
    shape("path", { class: "middle", d: path(points.map((p) => p.difference)) }),
    shape("line", { class: "whisker", x1: end, x2: end, y1: y(last.low), y2: y(last.high) }),
    shape("circle", { class: "dot", cx: end, cy: y(last.difference), r: 4 }),
    label(0, apart ? "0" : "margin"),
    label(last.allowed, apart ? "margin" : ""),
    shape("text", { x: left, y: height - 5 }, new Date(points[0].at).toLocaleTimeString()),
    shape("text", { x: width - right - 34, y: height - 5 }, new Date(last.at).toLocaleTimeString()),
  );
  return element(
    "figure",
    {},
    element("h3", {}, series.label),
    picture,
    element("figcaption", {}, `${percent(last.difference)}, between ${spread}; ${series.worse} is worse, ` +
      `allowed to ${percent(last.allowed)}. ${last.candidate_n} candidate, ${last.stable_n} stable.`),
  );
}

function weightFigure({ moves, rollout }) {
  const [width, height, left, bottom] = [720, 130, 40, 20];
  const from = Date.parse(rollout.started_at);
  const to = Math.max(Date.parse(rollout.ended_at ?? rollout.updated_at), from + 1000);
  const x = (at) => left + ((Date.parse(at) - from) / (to - from)) * (width - left - 10);
  const y = (weight) => 8 + (1 - weight / 10000) * (height - bottom - 8);
  let d = `M${left},${y(0)}`;
  for (const move of moves) d += `H${Math.max(left, x(move.at))}V${y(move.weight)}`;
  d += `H${width - 10}`;
  const lines = [0, 5000, 10000].flatMap((weight) => [
    shape("line", { class: "axis", x1: left, x2: width - 10, y1: y(weight), y2: y(weight) }),
    shape("text", { x: 2, y: y(weight) + 4 }, `${weight / 100} %`),
  ]);
  return shape(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Weight of the candidate, now ${rollout.weight / 100} %` },
    ...lines,
    shape("path", { class: "middle", d }),
    shape("text", { x: left, y: height - 4 }, moment(rollout.started_at)),
    shape("text", { x: width - 150, y: height - 4 }, moment(rollout.ended_at ?? rollout.updated_at)),
  );
}

// In place of a table's rows.
const sentenceRow = (text) => [element("tbody", {}, element("tr", {}, element("td", {}, text)))];

function odds(finding) {
  if (!finding.threshold) return "–";
  const against = Math.exp(Math.min(finding.log_e, 30));
  const shownOdds = against < 0.01 ? "under 0.01" : Number(against.toPrecision(3)).toLocaleString();
  return `${shownOdds} of ${Math.round(Math.exp(finding.threshold)).toLocaleString()}`;
}

function criteria(findings) {
  return rows(["Criterion", "State", "Says", "Odds against it"], findings.map((one) => [
    one.criterion.replaceAll("_", " "),
    element("strong", { class: one.state }, one.state),
    one.text.replace(`${one.criterion}: `, ""),
    odds(one),
  ]));
}

function gains(all) {
  if (typeof all === "string") return sentenceRow(all);
  const span = (found, unit) => found
    ? `${percent(found[unit])} (${percent(found.low)} to ${percent(found.high)})`
    : "–";
  if (!all.length) return sentenceRow("No version had a rollout yet.");
  return rows(
    ["Version", "Over", "Satisfaction", "Votes won", "Since the holdout's", "Satisfaction", "Votes won"],
    all.map((one) => [one.version, one.reference, span(one.satisfaction, "difference"), span(one.win_rate, "rate"),
      one.holdout_reference || "–", span(one.since_reference, "difference"),
      span(one.win_rate_since_reference, "rate")]));
}

function voters({ all, ended }) {
  const share = (part) => `${Math.round(100 * part)} %`;
  if (!all.length) return sentenceRow(ended ? "No request was judged." : "No request was judged yet.");
  return rows(["Tenant or API key (hash)", "Of the candidate's attempts", "Of stable's", "Of its scores", "Of stable's", "Capped"],
    all.map((one) => [`${one.by} ${one.voter}`, share(one.candidate), share(one.stable),
      share(one.candidate_scores), share(one.stable_scores), one.capped.toLocaleString()]));
}

function decisions(moves) {
  return [...moves].reverse().map((move) => element(
    "li",
    {},
    element("time", { datetime: move.at }, moment(move.at)),
    move.sentence,
    element("details", {}, element("summary", {}, `Evidence (record ${move.id})`),
      element("pre", {}, JSON.stringify(move.evidence.findings ?? move.evidence, null, 1))),
  ));
}

// Of a version of settings on recorded prompts.
const evaluation = (passed) => (passed === null ? "–" : passed ? "passed" : "failed");

function drawRollout(rollout, moves, intervals, waiting) {
  update("sentence", [sentence(rollout), ...waiting].join(" "), (text) => [text]);
  update("facts", rollout, (data) => (data ? facts(data) : []));
  update("actions", rollout && [rollout.rollout_id, rollout.actions], () => (rollout ? buttons(rollout) : []));
  update("criteria", rollout?.findings ?? [], criteria);
  const ended = Boolean(rollout?.ended_at);
  update("voters", { all: rollout?.voters ?? [], ended }, voters);
  update("decisions", moves, decisions);
  update("weight", { moves: moves.map(({ at, weight }) => ({ at, weight })), rollout }, (data) =>
    data.rollout ? weightFigure(data) : []);
  update("intervals", { intervals, ended }, () => intervals.length
    ? intervals.map(intervalFigure)
    : [element("p", { class: "hint" }, `No criterion ${ended ? "had both arms' figures" : "has both arms' figures yet"}.`)]);
}

let gainsShown = { model: "", at: 0 };

async function refreshGains(model) {
  if (!model || (gainsShown.model === model && Date.now() - gainsShown.at < GAINS_EVERY_MS)) return;
  if (gainsShown.model !== model) update("gains", "The days' scores are being read.", gains);
  gainsShown = { model, at: Date.now() };
  // Without the day's scores all else is still shown.
  const found = await ask(`v1/versions/gain?model=${encodeURIComponent(model)}`).catch(() => null);
  const shown = found?.gains ?? "The days' scores cannot be read now.";
  if (gainsShown.model === model) update("gains", shown, gains);
}

async function refresh() {
  const model = byId("model").value;
  const [{ versions }, { rollouts }] = await Promise.all([
    ask("v1/versions"), ask("v1/rollouts?limit=100"),
  ]);
  const models = [...new Set([...versions, ...rollouts].map((one) => one.model))].sort();
  update("model", models, (names) => names.map((name) => element("option", {}, name)));
  if (models.includes(model)) byId("model").value = model;
  const chosen = byId("model").value;
  const mine = rollouts.filter((one) => one.model === chosen);
  present = mine.find((one) => !one.ended_at) ?? mine[0] ?? null;
  const path = present && `v1/rollouts/${encodeURIComponent(present.rollout_id)}`;
  const [moves, intervals] = path
    ? await Promise.all([
      ask(`${path}/decisions?moves=true&limit=500`).then((body) => body.decisions),
      ask(`${path}/intervals`).then((body) => body.intervals),
    ])
    : [[], []];
  const waiting = versions.filter((one) => one.model === chosen && one.waits_for).slice(0, MAX_WAITING)
    .map((one) => `${one.version} waits for ${one.waits_for}: see Versions.`);
  drawRollout(present, moves, intervals, waiting);
  refreshGains(chosen); // Reading the days' scores takes seconds, which nothing else waits for.
  update("versions", versions.filter((one) => one.model === chosen), (all) =>
    rows(["Version", "State", "Method", "Parent", "Evaluation", "Registered", "Why"], all.map((one) =>
      [one.version, one.state, one.method, one.parent || "–", evaluation(one.evaluated),
        moment(one.created_at), one.waits_for ? `waits for ${one.waits_for}` : one.reason])));
  update("earlier", mine.filter((one) => one !== present), (all) =>
    rows(["Rollout", "Candidate", "Ended", "How", "Reason"], all.map((one) =>
      [one.rollout_id, one.candidate, one.ended_at ? moment(one.ended_at) : "–", one.result, one.reason])));
}

useKey(() => show(refresh));
byId("model").addEventListener("change", () => refresh().catch(() => {}));
keepFresh(refresh, POLL_MS);
