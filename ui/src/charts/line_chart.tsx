// Lines over steps or time, with optional bands, drawn by uPlot. Colours come from the theme when it is drawn.
import { useEffect, useRef } from "react";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { align, type Series } from "./align";
import { number, plain, time, useZone } from "../format";
import { Empty } from "../components/basics";
import { useTheme } from "../components/theme";

export const COLOURS = 6;
/** More series than this are drawn as thin lines without a mark at the cursor: each mark is an element of the page. */
const FEW = 30;
export const colour = (index: number): string => `var(--s${(index % COLOURS) + 1})`;

const NONE = [null, null, null, null, null, 1] as const;
/** What stands below the marks of a time axis: for each distance between them, its text and what a change of the year or day adds. */
const STAMPS = [
  [365 * 86_400, "{YYYY}", null, ...NONE],
  [28 * 86_400, "{MMM}", "\n{YYYY}", ...NONE],
  [86_400, "{D} {MMM}", "\n{YYYY}", ...NONE],
  [60, "{HH}:{mm}", "\n{D} {MMM} {YYYY}", null, "\n{D} {MMM}", null, null, null, 1],
  [0.001, "{HH}:{mm}:{ss}", "\n{D} {MMM} {YYYY}", null, "\n{D} {MMM}", null, null, null, 1],
] as unknown as uPlot.Axis.Values;

const tick = (value: number | null): string => (value === null ? "" : Number.isInteger(value) ? number(value) : plain(value));

function resolve(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

export function LineChart({ series, times, height = 240, label, log = false }: { series: Series[]; times?: boolean; height?: number; label: string; log?: boolean }) {
  const box = useRef<HTMLDivElement>(null);
  const [theme] = useTheme();
  const [zone] = useZone();
  const drawable = series.some((one) => one.y.some((value) => value !== null));
  useEffect(() => {
    const element = box.current;
    if (!element) return undefined;
    const [xs, columns] = align(series);
    const line = resolve("--line");
    const soft = resolve("--soft");
    const strokes = Array.from({ length: COLOURS }, (_, index) => resolve(`--s${index + 1}`));
    const many = series.length > FEW;
    const shown: uPlot.Series[] = [{ label: times ? "time" : "step" }];
    const bands: uPlot.Band[] = [];
    for (const [index, one] of series.entries()) {
      const stroke = strokes[(one.colour ?? index) % COLOURS] as string;
      shown.push({
        label: one.name,
        stroke,
        width: many ? 1 : 2,
        spanGaps: true,
        points: { show: one.points ?? (!many && xs.length < 60), size: 5 },
        value: (_, value) => number(value),
        ...(one.dashed ? { dash: [6, 5] } : {}),
      });
      if (one.low && one.high) {
        const at = shown.length;
        for (const end of ["low", "high"]) shown.push({ label: `${one.name} ${end}`, stroke: "transparent", points: { show: false }, spanGaps: true });
        bands.push({ series: [at + 1, at], fill: `${stroke}26` });
      }
    }
    const font = "11px system-ui, sans-serif";
    const axis = { stroke: soft, font, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1, size: 4 } };
    const plot = new uPlot(
      {
        width: element.clientWidth || 400,
        height,
        series: shown,
        bands,
        legend: { show: false },
        cursor: { drag: { x: true, y: false }, points: { show: !many, size: 6 } },
        scales: { x: { time: times ?? false }, y: { distr: log ? 3 : 1 } },
        axes: [times ? { ...axis, space: 60, values: STAMPS } : { ...axis, size: 28, values: (_, values) => values.map(tick) }, { ...axis, size: 58, values: (_, values) => values.map(tick) }],
        ...(zone === "utc" ? { tzDate: (stamp: number) => uPlot.tzDate(new Date(stamp * 1000), "UTC") } : {}),
        plugins: [tooltip(series, times ?? false)],
      },
      [xs, ...columns] as uPlot.AlignedData,
      element,
    );
    const observer = new ResizeObserver(() => {
      if (element.clientWidth > 0) plot.setSize({ width: element.clientWidth, height });
    });
    observer.observe(element);
    return () => {
      observer.disconnect();
      plot.destroy();
    };
  }, [series, times, height, theme, zone, log]);
  if (!drawable) return <Empty title="No finite value to draw" />;
  return (
    <div>
      <div ref={box} className="chart" role="img" aria-label={label} style={{ height }} />
      {series.length > 1 && series.length <= 12 && (
        <div className="legend">
          {series.map((one, index) => (
            <span key={index}>
              <i className={one.dashed ? "dashed" : ""} style={{ color: colour(one.colour ?? index) }} />
              {one.name}
            </span>
          ))}
        </div>
      )}
    </div>
  );
}

function tooltip(series: Series[], times: boolean): uPlot.Plugin {
  const box = document.createElement("div");
  box.className = "tooltip";
  box.hidden = true;
  return {
    hooks: {
      init: (plot) => plot.over.append(box),
      setCursor: (plot) => {
        const index = plot.cursor.idx;
        if (index === null || index === undefined || plot.cursor.left === undefined || plot.cursor.left < 0) {
          box.hidden = true;
          return;
        }
        const x = plot.data[0][index] as number;
        const lines = [times ? time(new Date(x * 1000).toISOString()) : `step ${number(x)}`];
        let column = 1;
        for (const one of series) {
          const value = plot.data[column]?.[index];
          const low = one.low ? plot.data[column + 1]?.[index] : undefined;
          const high = one.high ? plot.data[column + 2]?.[index] : undefined;
          if (value !== null && value !== undefined && lines.length < 14)
            lines.push(`${one.name}: ${number(value)}${low !== null && low !== undefined ? ` [${number(low)}, ${number(high)}]` : ""}`);
          column += one.low && one.high ? 3 : 1;
        }
        box.hidden = lines.length < 2;
        box.textContent = lines.join("\n");
        const right = plot.cursor.left > plot.over.clientWidth / 2;
        box.style.left = right ? "" : `${plot.cursor.left + 12}px`;
        box.style.right = right ? `${plot.over.clientWidth - plot.cursor.left + 12}px` : "";
      },
    },
  };
}
