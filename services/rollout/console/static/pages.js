// Console's pages beside rollouts: each asks the JSON API for one list and draws it. No dependency.
import {
  ask, byId, confirm, counts, element, facts, keepFresh, linked, moment, number, percent, show, table, titled, update, useKey,
} from "./common.js";
import { drawDataset } from "./dataset.js";
import { drawReport, reportChoice } from "./report.js";

const REFRESH_MS = 10_000;
let chosen = named();
let listed = [];

// Each page: what it lists, the name of a row, its columns, what may be done, and the details of a row.
const PAGES = {
  versions: {
    title: "Versions",
    hint: "Every version of each model, trained or of prompts and settings.",
    empty: "No version yet: ratchet versions register makes the first of the model as it is, ratchet train a better one.",
    list: async () => (await ask("v1/versions")).versions.reverse(),
    name: (one) => one.version,
    columns: {
      Model: (one) => one.model,
      State: (one) => one.state,
      Method: (one) => one.method,
      Parent: (one) => one.parent,
      Gate: (one) => one.gate_overridden_by ? `overridden by ${one.gate_overridden_by}` : one.released ? "passed" : "no",
      Registered: (one) => moment(one.created_at),
      "Why in this state": (one) => one.waits_for ? `waits for ${one.waits_for}` : one.reason,
    },
    actions: () => [action("Register settings", "A system prompt, sampling or tools become a version, which is rolled "
      + "out and taken back like weights. Empty fields are left to the client.", "v1/versions",
      { fields: settingsFields, compose: settingsBody })],
    rowActions: (one) => [
      ...one.waits_for ? [action("Accept and start", `Its rollout waits for ${one.waits_for}. Only an approver's key starts it.`,
        "v1/rollouts", { about: one.version, body: { model: one.model, candidate: one.version, one_tenant: true } })] : [],
      ...one.method === "settings" && one.state !== "stable"
        ? [action("Evaluate", `${one.version} answers recorded prompts beside stable.`,
          `v1/versions/${encodeURIComponent(one.version)}/evaluation`, { about: one.version, fields: () =>
            [field("prompts", "Recorded prompts", { type: "number", value: 64, min: 10, max: 128, required: "" })] })]
        : []],
    detail: versionDetail,
  },
  training: {
    title: "Training runs",
    hint: "The newest job first. Time left is a guess from the progress so far.",
    empty: "No job was asked for yet: ratchet train asks for one.",
    list: async () => (await ask("v1/training/jobs")).jobs,
    name: (one) => one.job_id,
    columns: {
      Model: (one) => one.model,
      Method: (one) => one.method,
      Phase: (one) => one.phase,
      Progress: progress,
      Version: (one) => one.version,
      Asked: (one) => `${moment(one.requested_at)} by ${who(one)}`,
      Says: (one) => one.message,
    },
    actions: () => [action("Ask for a training", "The next version of a model, from stable and the log's pairs where the "
      + "recipe says nothing else.", "v1/training/jobs", { fields: trainingFields })],
    rowActions: (one) => one.cancellable
      ? [action("Cancel", "Its trainer is ended, and no version comes of it.",
        `v1/training/jobs/${encodeURIComponent(one.job_id)}/cancel`, { about: one.job_id })]
      : [],
    detail: jobDetail,
  },
  datasets: {
    title: "Datasets",
    hint: "Snapshots that versions and reward models were trained on.",
    empty: "Nothing was trained yet, so there is no dataset.",
    list: async () => (await ask("v1/datasets")).datasets,
    name: (one) => one.dataset_id,
    columns: {
      Model: (one) => one.model,
      Rows: (one) => one.rows.toLocaleString(),
      "Left out": (one) => Object.values(one.refused).reduce((sum, count) => sum + count, 0).toLocaleString(),
      "Erased since": (one) => one.erased_rows.toLocaleString(),
      "Used by": (one) => one.used_by.join(", "),
      Made: (one) => moment(one.created_at),
    },
    detail: async (one) => drawDataset(await ask(`v1/datasets/${encodeURIComponent(one.dataset_id)}`)),
  },
  quality: {
    title: "Quality",
    hint: "Figures of whole days (UTC). Late feedback counts on the day of its request.",
    empty: "No day has figures yet: they come with the first requests.",
    list: async () => {
      const { targets, days } = await ask("v1/quality");
      return days.map((day) => ({ ...day, targets: Object.fromEntries(targets.map((one) => [one.figure, one])) }));
    },
    columns: {
      Day: (one) => one.day,
      Version: (one) => one.version,
      Requests: (one) => one.requests.toLocaleString(),
      "Feedback rate": (one) => againstTarget(one, "feedback_rate"),
      "Positive ratio": (one) => againstTarget(one, "positive_ratio"),
      "Correction rate": (one) => againstTarget(one, "correction_rate"),
      "Satisfaction (0 to 1)": (one) => againstTarget(one, "satisfaction"),
      Errors: (one) => one.errors === null ? "–" : percent(one.errors),
    },
  },
  keys: {
    title: "API keys",
    hint: "Only hashes are kept. Keys of operators (scope operate) are issued at the command line.",
    empty: "No key was issued yet.",
    list: async () => (await ask("v1/keys")).keys,
    name: (one) => one.key_id,
    columns: {
      Name: (one) => one.name,
      Tenant: (one) => one.tenant,
      Scopes: (one) => one.scopes.join(", "),
      State: (one) => one.state,
      Issued: (one) => moment(one.issued_at),
      Expires: (one) => one.expires_at ? moment(one.expires_at) : "never",
    },
    actions: () => [action("Issue a key", "It is shown once, on this page.", "v1/keys", {
      fields: () => [field("name", "What uses it", {}), field("tenant", "Tenant", { value: "default", required: "" }),
        scopes(), days()],
    })],
    rowActions: (one) => {
      const path = `v1/keys/${encodeURIComponent(one.key_id)}`;
      if (one.state === "expired") {
        return [
          action("Renew", `A key like ${one.key_id}, which expired, is issued and shown once.`, `${path}/rotate`,
            { about: one.key_id, body: { overlap_hours: 0 }, fields: () => [days()] }),
          action("Remove", `${one.key_id} expired and is refused already; it leaves this list.`, `${path}/revoke`, { about: one.key_id }),
        ];
      }
      const overlap = { type: "number", value: 24, min: 0, max: 2160, step: "any", required: "" };
      return [
        action("Rotate", `A key like ${one.key_id} is issued and shown once; the old one expires.`, `${path}/rotate`,
          { about: one.key_id, fields: () => [field("overlap_hours", "Hours that the old one stays valid", overlap), days()] }),
        action("Revoke", `${one.key_id} is refused everywhere from now on.`, `${path}/revoke`, { about: one.key_id }),
      ];
    },
  },
  "dead-letters": {
    title: "Dead letters",
    hint: "Records that a service could not read, redacted. Correct the cause before a replay; nothing counts twice.",
    empty: "There are none: every record could be read.",
    list: async () => (await ask("v1/dead-letters")).dead_letters,
    name: (one) => one.place,
    columns: {
      At: (one) => moment(one.at),
      Reason: (one) => one.reason.replaceAll("_", " "),
      Detail: (one) => one.detail,
      Service: (one) => one.service,
      Replayed: (one) => one.replayed_at ? `${moment(one.replayed_at)}${one.unreadable_again ? ", unreadable again" : ""}` : "",
    },
    rowActions: (one) => one.body
      ? [action("Replay", `${one.place} goes back to its topic.`, "v1/dead-letters/replay", { about: one.place,
        body: { topic: one.source_topic, partition: one.source_partition, offset: one.source_offset } })]
      : [],
    detail: (one) => [facts({ Key: one.source_key, Detail: one.detail }),
      element("pre", {}, one.body || "Its body is empty, so there is nothing to replay.")],
  },
  erasures: {
    title: "Erasures",
    hint: "People of your key's tenant are erased; the log names them by a hash.",
    empty: "Nobody asked to be erased.",
    list: async () => (await ask("v1/erasures")).erasures,
    name: (one) => one.erasure_id,
    columns: {
      Asked: (one) => moment(one.requested_at),
      Tenant: (one) => one.tenant,
      State: (one) => one.state,
      By: who,
      Why: (one) => one.reason,
    },
    detail: (one) => [facts({ Person: one.subject, ...(one.proof.completed_at
      ? { Completed: moment(one.proof.completed_at), Traces: one.proof.traces,
        "Joined examples that lost texts": one.proof.examples, "Pairs retracted": one.proof.products }
      : { Proof: "none yet; it comes when the sweep is done" }) })],
    actions: () => [action("Erase a person", "Texts and training data of the person go for good; figures stay.",
      "v1/erasures", { fields: () => [field("user_id", "User id that products send", { required: "", maxlength: 200 })] })],
  },
  report: {
    title: "Weekly report",
    hint: "The last seven days, or the week (UTC, from Monday) of a day. As Markdown and HTML: ratchet report weekly.",
    refreshMs: 300_000,
    list: async () => [await ask(`v1/reports/weekly?${reportChoice()}`)],
    draw: ([report]) => drawReport(report),
    actions: () => [field("week", "A day of the week", { type: "date" }),
      field("target", "Pairs wanted", { type: "number", value: 100, min: 1, max: 1_000_000 })],
  },
};
const page = PAGES[location.pathname.split("/").pop()];

function who(one) {
  return one.on_behalf_of ? `${one.on_behalf_of} (key ${one.actor})` : one.actor;
}

function field(name, label, attributes) {
  return element("label", {}, label, element("input", { name, autocomplete: "off", ...attributes }));
}

function choice(name, label, options) {
  return element("label", {}, label, element("select", { name }, ...options.map(([value, text]) =>
    element("option", { value }, text))));
}

function textField(name, label) {
  return element("label", {}, label, element("textarea", { name, rows: 4 }));
}

function trainingFields() {
  return [
    field("model", "Model", { required: "", value: listed[0]?.model ?? "" }),
    choice("method", "Method", [["", "the recipe's, else dpo"],
      ...["sft", "dpo", "kto", "grpo", "rloo", "ppo", "online_dpo", "reward"].map((name) => [name, name])]),
    field("version", "Name of the version; empty: the next one", {}),
    textField("recipe", "Recipe (YAML: base, parent, dataset, seed, hyperparameters)"),
    choice("override_gate", "Release", [["false", "where its gate passes"], ["true", "whatever its gate says"]]),
  ];
}

function settingsFields() {
  return [
    field("version", "Name, never used before", { required: "" }),
    field("model", "Model", { required: "", value: listed[0]?.model ?? "" }),
    field("adapter_of", "Serve this version's adapter; empty: the base alone", {}),
    textField("system", "System prompt"),
    choice("system_rule", "Stands", [["before", "before the client's system prompt"], ["replace", "in its place"]]),
    ...["temperature", "top_p", "max_tokens"].map((name) => field(name, name, { inputmode: "decimal" })),
    textField("defaults", "More request fields (JSON: tools, response_format, stop …)"),
    choice("precedence", "Where client and version both have a field", [["client", "the client's counts"],
      ["version", "the version's counts"]]),
  ];
}

function settingsBody({ version, model, adapter_of, reason, system, system_rule, precedence, defaults, ...sampling }) {
  const given = Object.entries(sampling).filter(([, value]) => value !== "").map(([name, value]) => [name, Number(value)]);
  return { version, model, adapter_of, reason, settings: { system, system_rule, precedence,
    defaults: { ...JSON.parse(defaults || "{}"), ...Object.fromEntries(given) } } };
}

function days() {
  return field("days", "Days until it expires; 0: never", { type: "number", value: 0, min: 0, max: 3650, step: "any", required: "" });
}

function scopes() {
  return element("fieldset", {}, element("legend", {}, "Scopes"), ...["infer", "feedback", "vote"].map((scope) =>
    element("label", {}, element("input", { type: "checkbox", name: "scopes", value: scope }), scope)));
}

// A button that asks why, and posts; `about` names its row for those who do not see it.
function action(title, text, path, { about = "", fields = () => [], body = {}, compose = (given) => given } = {}) {
  const button = element("button", { type: "button" }, title);
  if (about) button.setAttribute("aria-label", `${title} ${about}`);
  button.addEventListener("click", () => confirm(title, text, (given) => act(path, () => ({ ...body, ...compose(given) })), fields()));
  return button;
}

async function act(path, body) {
  const answer = byId("answer");
  try {
    const done = await ask(path, { method: "POST", body: JSON.stringify(body()) });
    answer.textContent = "";
    if (done.key) {
      byId("secret").replaceChildren(element("p", {}, `${done.key_id}, shown this once. Send it as: Authorization: Bearer`),
        element("code", {}, done.key));
    }
  } catch (error) {
    answer.textContent = `Not done: ${error.message}`;
  }
  await show(refresh);
}

function progress(one) {
  if (!one.cancellable) return "–";
  const share = one.progress ?? 0;
  const left = one.seconds_left === null ? "" : `, ${duration(one.seconds_left)} left`;
  return element("span", {}, element("progress", { value: share, max: 1, "aria-label": `Progress of ${one.job_id}` }),
    ` ${percent(share, 0)}${left}`);
}

function duration(seconds) {
  if (seconds < 90) return `${Math.ceil(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function againstTarget(one, name) {
  const value = one.figures[name];
  if (value === null) return "–";
  const { direction, target } = one.targets[name];
  const met = direction === ">" ? value > target : value < target;
  return element("span", { class: met ? "met" : "missed" },
    `${percent(value, 1)}, ${met ? "meets" : "misses"} ${direction} ${percent(target, 0)}`);
}

// The name after # in the address, by which a page of one thing is linked to.
function named() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return "";
  }
}

function checks(gate) {
  return titled("Gate", gate.length
    ? table("Gate", ["Check", "Passed", "Value", "Limit", "What"], gate.map((one) =>
      [one.name, one.passed ? "yes" : "no", number(one.value), number(one.limit), one.detail]))
    : element("p", { class: "empty" }, "No check is on record."));
}

async function versionDetail(one) {
  const { record } = await ask(`v1/versions/${encodeURIComponent(one.version)}`);
  const lineage = [];
  for (let at = one; at && lineage.length < 50; at = listed.find(({ version }) => version === at.parent)) {
    lineage.unshift(at.version);
  }
  const parent = listed.find(({ version }) => version === one.parent);
  const query = new URLSearchParams({ first: one.parent, second: one.version });
  const { differences } = parent ? await ask(`v1/versions/differences?${query}`) : { differences: [] };
  const text = (value) => value === null ? "–" : typeof value === "object" ? JSON.stringify(value) : String(number(value));
  return [
    facts({ Lineage: lineage.join(" → "), Base: record.base, Dataset: linked("datasets", record.dataset?.dataset_id), Seed: record.seed ?? "",
      "Erased rows": one.erased_rows, "Code revision": record.code_revision ?? "" }),
    checks(record.gate.checks),
    ...Object.keys(one.tenants).length ? [counts("Rows of its dataset, by tenant", one.tenants)] : [],
    titled("Figures of its evaluation", Object.keys(one.metrics).length
      ? table("Figures of its evaluation", ["Figure", "Value"], Object.entries(one.metrics).map(([name, value]) =>
        [name.replaceAll("_", " "), number(value)]))
      : element("p", { class: "empty" }, "None: it was not trained.")),
    titled("Differences from its parent", differences.length
      ? table("Differences from its parent", ["Field", one.parent, one.version], differences.map((found) =>
        [found.field, text(found.first), text(found.second)]))
      : element("p", { class: "empty" }, parent ? "None." : "It has no parent.")),
  ];
}

function jobDetail(one) {
  return [
    facts({ Phase: one.phase, Says: one.message, Attempt: one.attempt ?? "", Reason: one.reason, Report: one.report_uri ?? "",
      "Gate overridden": one.override_gate ? "yes" : "" }),
    checks(one.checks ?? []),
    titled("Figures", Object.keys(one.metrics ?? {}).length
      ? table("Figures", ["Figure", "Value"], Object.entries(one.metrics).map(([name, value]) =>
        [name.replaceAll("_", " "), number(value)]))
      : element("p", { class: "empty" }, one.cancellable ? "None yet." : "None.")),
  ];
}

function opener(one) {
  const button = element("button", { type: "button", class: "link" }, page.name(one));
  button.addEventListener("click", async () => {
    chosen = page.name(one);
    history.replaceState(null, "", `#${encodeURIComponent(chosen)}`);
    await show(refresh);
    byId("detail").focus();
  });
  return button;
}

function listing(all) {
  if (!all.length) return [element("p", { class: "empty" }, page.empty)];
  const head = [...(page.name ? [page.title.replace(/s$/, "")] : []), ...Object.keys(page.columns),
    ...(page.rowActions ? ["What you may do"] : [])];
  const lines = all.map((one) => [...(page.name ? [page.detail ? opener(one) : page.name(one)] : []),
    ...Object.values(page.columns).map((cell) => cell(one) || "–"),
    ...(page.rowActions ? [element("span", { class: "buttons" }, ...page.rowActions(one))] : [])]);
  return [table(page.title, head, lines)];
}

async function refresh() {
  listed = await page.list();
  update("list", listed, page.draw ?? listing);
  const one = page.detail && listed.find((row) => page.name(row) === chosen);
  const detail = one ? [element("h2", {}, chosen), ...await page.detail(one)] : page.detail && chosen
    ? [element("h2", {}, chosen), element("p", { class: "empty" }, "Not in this list: there is none of this name, "
      + "or it is another tenant's.")] : [];
  update("detail", detail.map((node) => node.outerHTML), () => detail);
}

document.title = `${page.title} · Ratchet`;
byId("title").textContent = page.title;
byId("hint").textContent = page.hint;
byId("actions").replaceChildren(...page.actions?.() ?? []);
byId("actions").addEventListener("change", () => show(refresh));
document.querySelector(`nav a[href="${location.pathname.split("/").pop()}"]`).setAttribute("aria-current", "page");
addEventListener("hashchange", () => {
  chosen = named();
  show(refresh);
});
useKey(() => show(refresh));
keepFresh(refresh, page.refreshMs ?? REFRESH_MS);
