// The weekly report: a week's pairs, versions and what to do next, drawn from one answer of the JSON API.
import { byId, counts, element, facts, percent, shape, table, titled } from "./common.js";

const BAR = { step: 80, width: 60, height: 120 };

export function reportChoice() {
  const chosen = (name) => byId("actions").querySelector(`[name=${name}]`).value;
  return new URLSearchParams({ week: chosen("week"), target: chosen("target") || "100" });
}

export function drawReport(report) {
  const pairs = report.preferences;
  const total = Object.values(pairs.per_day).reduce((sum, count) => sum + count, 0);
  return [
    element("h2", {}, `${report.start} up to ${report.end}`),
    facts({ Pairs: `${total.toLocaleString()} of ${report.target.toLocaleString()} (${percent(total / report.target, 0)})`,
      "At its end, at this pace": report.forecast?.toLocaleString() ?? "", "Taken back": pairs.retracted }),
    report.whole ? null : element("p", { class: "held" },
      "The week has more records than a page reads, so older ones are missing here: ratchet report weekly counts all."),
    titled("Next actions", element("ol", {}, ...report.actions.map((one) => element("li", {}, one)))),
    titled("Pairs a day", bars(pairs.per_day)),
    counts("Pairs by source", pairs.by_source),
    lines("Versions against each other", ["Version", "Win rate", "Wins", "Losses", "Mean length (characters)"],
      pairs.duels.map((one) => [one.version, percent(one.wins / (one.wins + one.losses), 1), one.wins, one.losses,
        Math.round(pairs.mean_length[one.version] ?? 0)])),
    figures(report),
    counts("Data quality", { "chosen less than half as long as rejected": pairs.short_chosen,
      "the same pair again": pairs.duplicates, "chosen both ways": pairs.contradictions }),
    records("Versions registered", report.versions),
    records("Rollouts", report.rollouts),
    records("Trainings", report.trainings),
  ].filter(Boolean);
}

function bars(perDay) {
  const days = Object.entries(perDay);
  const highest = Math.max(1, ...days.map(([, count]) => count));
  const said = days.map(([day, count]) => `${day}: ${count}`).join(", ");
  const svg = shape("svg", { viewBox: `0 0 ${BAR.step * days.length} ${BAR.height + 40}`, role: "img", "aria-label": said });
  days.forEach(([day, count], place) => {
    const tall = BAR.height * count / highest;
    const top = 20 + BAR.height - tall;
    const middle = { x: place * BAR.step + BAR.step / 2, "text-anchor": "middle" };
    svg.append(
      shape("rect", { x: place * BAR.step + 10, y: top, width: BAR.width, height: tall, class: "dot" }),
      shape("text", { ...middle, y: top - 5 }, String(count)),
      shape("text", { ...middle, y: BAR.height + 36 }, day.slice(5)),
    );
  });
  return element("figure", { class: "narrow" }, svg);
}

function figures(report) {
  const names = [...new Set(Object.values(report.figures).flatMap(Object.keys))];
  return lines("Live figures of the last day", ["Version", ...names.map(spaced), "Errors"],
    Object.entries(report.figures).map(([version, found]) => [version,
      ...names.map((name) => name in found ? percent(found[name], 1) : "–"),
      version in report.errors ? percent(report.errors[version]) : "–"]));
}

function records(title, found) {
  return lines(title, Object.keys(found[0] ?? {}).map(spaced), found.map((one) => Object.values(one)));
}

function lines(title, head, found) {
  return titled(title, found.length ? table(title, head, found) : element("p", { class: "empty" }, "None."));
}

const spaced = (name) => name.replaceAll("_", " ");
