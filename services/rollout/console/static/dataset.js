// A dataset's card: what it is made of, how it was chosen, and what was trained on it.
import { counts, element, facts, linked, number, percent, table, titled } from "./common.js";

const CARD = {
  counts: "Counts of what is trained on", source: "Sources", category: "Categories", locale: "Locales", segment: "Segments",
  chosen_version: "Writers of the better answers", rejected_version: "Writers of the worse answers",
  tenant: "Tenants", quality: "Quality of its pairs (%)",
};

export function drawDataset(found) {
  const parts = Object.entries(CARD).filter(([name]) => Object.keys(found.card[name] ?? {}).length);
  const rules = Object.entries(found.rules);
  const share = (value) => value === null ? "–" : percent(value, 0);
  return [
    facts({ Model: found.model, "SHA-256": found.sha256, Storage: found.uri, Raters: found.card.counts?.raters ?? "",
      "Rows erased since": found.erased_rows.toLocaleString() }),
    titled("Trained on it", table("Trained on it",
      ["Name", "Kind", "Rows that its parent wrote", "Generations behind it", "Age (days)"],
      found.used_by.map((user) => [user.kind === "version" ? linked("versions", user.name) : user.name, user.kind,
        share(user.data_on_policy_share), number(user.data_policy_lag), number(user.data_age_days)]))),
    ...Object.keys(found.splits).length ? [counts("Rows of each split", found.splits)] : [],
    counts("Rows left out, by quality check", found.refused),
    ...parts.length ? parts.map(([name, title]) => counts(title, found.card[name]))
      : [element("p", { class: "empty" }, "Its record is older than cards in records.")],
    ...rules.length ? [titled("Filters", table("Filters", ["Rule", "Value"], rules.map(([name, value]) =>
      [name.replaceAll("_", " "), typeof value === "object" ? JSON.stringify(value) : String(value)])))] : [],
    counts("Offsets up to which the log was read", found.offsets),
    element("p", { class: "hint" }, `Its files and each row's lineage: ratchet dataset show ${found.uri} --lineage`),
  ];
}
