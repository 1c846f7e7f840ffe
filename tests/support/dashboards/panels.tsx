// Draws the panels of a dashboard by Grafana's components, and tells what of them is to be seen.
import {
  applyFieldOverrides, colorManipulator, createTheme, dateTime, FieldType, getFieldSeriesColor, getValueFormats,
  toDataFrame,
} from "@grafana/data";
import type { DataFrame } from "@grafana/data";
import { GlobalStyles, PanelChrome, ThemeContext, TimeSeries } from "@grafana/ui";
import { flushSync } from "react-dom";
import { createRoot } from "react-dom/client";

type Series = { name: string; points: [number, number | null][] };
type Given = { panels: any[]; series: Series[][]; from: number; to: number; step: number; width: number };

// What Grafana's time series panel takes where the JSON says nothing; the rest are the components' own defaults.
const COLOR = { mode: "palette-classic" };
const CUSTOM = { drawStyle: "line", lineInterpolation: "linear", lineWidth: 1, fillOpacity: 0, pointSize: 5 };
const LEGEND = { showLegend: true, displayMode: "list", placement: "bottom", calcs: [] };
const KNOWN = ["id", "type", "title", "description", "datasource", "gridPos", "fieldConfig", "options", "targets"];
const COLUMNS = 24, ROW = 30, GAP = 8;  // Grafana's grid
const PATIENCE_MS = 30_000;

const broken: string[] = [];
addEventListener("error", ({ message }) => broken.push(message));
const root = createRoot(document.getElementById("root")!);
const theme = createTheme({ colors: { mode: "dark" } });
const units = new Set(getValueFormats().flatMap((group) => group.submenu.map((unit) => unit.value)));

function frames(panel: any, series: Series[], step: number): DataFrame[] {
  const { custom, ...given } = panel.fieldConfig.defaults;
  const config = { color: COLOR, ...given, custom: { ...CUSTOM, ...custom } };
  const data = series.map(({ name, points }) => toDataFrame({
    fields: [
      { name: "Time", type: FieldType.time, values: points.map(([time]) => time), config: { interval: step } },
      {
        name: "Value", type: FieldType.number, values: points.map(([, value]) => value),
        config: structuredClone({ ...config, displayNameFromDS: name }),
      },
    ],
  }));
  const fieldConfig = { defaults: {}, overrides: [] };
  return applyFieldOverrides({ data, fieldConfig, theme, timeZone: "utc", replaceVariables: (text) => text });
}

function place({ x, y, w, h }: any, width: number) {
  const column = (width - GAP * (COLUMNS + 1)) / COLUMNS;
  const across = (count: number) => Math.floor(count * (column + GAP));
  return { left: GAP + across(x), top: GAP + y * (ROW + GAP), width: across(w) - GAP, height: h * (ROW + GAP) - GAP };
}

const size = ({ width, height }: { width: number; height: number }) => ({ width, height });

function refused(panel: any): string[] {
  const { unit } = panel.fieldConfig.defaults;
  return [
    ...Object.keys(panel).filter((name) => !KNOWN.includes(name)),
    ...(panel.type === "timeseries" ? [] : [`type ${panel.type}`]),
    ...(panel.fieldConfig.overrides.length ? ["overrides"] : []),
    ...(units.has(unit) ? [] : [`unit ${unit}`]),
  ];
}

// Which colours a canvas has a pixel of: grid and text are grey, so that a line's is a line drawn.
function seen(box: Element): (color: string) => boolean {
  const canvas = box.querySelector("canvas");
  if (!canvas) return () => false;
  const { data } = canvas.getContext("2d")!.getImageData(0, 0, canvas.width, canvas.height);
  return (color) => {
    const wanted = colorManipulator.decomposeColor(color).values as number[];
    for (let at = 0; at < data.length; at += 4)
      if (data[at + 3] > 128 && [0, 1, 2].every((band) => Math.abs(data[at + band] - wanted[band]) < 6)) return true;
    return false;
  };
}

// What of a panel is to be seen; that a line has the target's colour tells nothing.
function report(panel: any, box: Element, data: DataFrame[]) {
  const drawn = seen(box);
  const steps = (panel.fieldConfig.defaults.thresholds?.steps ?? []).filter(({ value }: any) => value !== null);
  const targets: string[] = steps.map(({ color }: any) => theme.visualization.getColorByName(color));
  const lines = data.map((frame) => getFieldSeriesColor(frame.fields[1], theme).color);
  return {
    title: panel.title,
    lines: lines.filter((color) => !targets.includes(color) && drawn(color)).length,
    target: targets.every(drawn),
    legend: [...box.querySelectorAll("button")].map((one) => one.textContent),
  };
}

// Until that many canvases are drawn and stay as they are: a plot comes when its legend was measured.
async function settled(count: number) {
  const end = performance.now() + PATIENCE_MS;
  for (let before = [""], same = 0; same < 3 && performance.now() < end;) {
    await new Promise(requestAnimationFrame);
    const now = [...document.querySelectorAll("canvas")].map((canvas) => canvas.toDataURL());
    same = now.length === count && now.every((picture, at) => picture === before[at]) ? same + 1 : 0;
    before = now;
  }
}

async function draw({ panels, series, from, to, step, width }: Given) {
  const refusals = panels.flatMap((panel) => refused(panel).map((what) => `${panel.title}: ${what}`));
  if (refusals.length) throw new Error(`not drawn here or unknown to Grafana: ${refusals.join("; ")}`);
  const timeRange = { from: dateTime(from), to: dateTime(to), raw: { from: dateTime(from), to: dateTime(to) } };
  const data = panels.map((panel, number) => frames(panel, series[number], step));
  const page = (children: any) => flushSync(() => root.render(
    <ThemeContext.Provider value={theme}><GlobalStyles />{children}</ThemeContext.Provider>));

  page(null);
  // A canvas waits for no font.
  await Promise.all([400, 500].map((weight) => document.fonts.load(`${weight} 12px Inter`)));
  const places = panels.map((panel) => place(panel.gridPos, width));
  page(panels.map((panel, number) => (
    <div key={panel.id} className="panel" style={{ position: "absolute", ...places[number] }}>
      <PanelChrome title={panel.title} description={panel.description} {...size(places[number])}>
        {(width, height) => data[number].length
          ? <TimeSeries frames={data[number]} {...{ width, height, timeRange }} timeZone="utc"
              legend={{ ...LEGEND, ...panel.options?.legend }} />
          : <div style={{ height, display: "grid", placeContent: "center" }}>No data</div>}
      </PanelChrome>
    </div>
  )));
  const bottom = Math.max(...places.map(({ top, height }) => top + height));
  document.getElementById("root")!.style.height = `${bottom + GAP}px`;
  await settled(data.filter((lines) => lines.length).length);
  if (broken.length) throw new Error(broken.splice(0).join("; "));
  return [...document.querySelectorAll(".panel")].map((box, number) => report(panels[number], box, data[number]));
}

Object.assign(window, { draw });
