// One axis for each number that differs, one line for each run. The colour goes with the last axis, a metric.
import { useMemo } from "react";
import type { ComparedRuns } from "../api/schema";
import { number, text } from "../format";
import { href } from "../router";

const WIDTH = 900;
const HEIGHT = 260;
const MOST_AXES = 9;

/** From this ratio on, numbers that are all positive stand on a logarithmic axis, such as learning rates. */
const WIDE = 100;

type Axis = { name: string; values: (number | null)[]; low: number; high: number; log: boolean; measured: boolean };

/** The numbers that differ between runs: parameters first, then metrics. */
export function axesOf(compared: ComparedRuns): Axis[] {
  const groups = compared.groups ?? {};
  const found: Axis[] = [];
  for (const group of ["params", "metrics"]) {
    for (const [name, values] of Object.entries(groups[group] ?? {})) {
      const numbers = values.map((value) => {
        const converted = typeof value === "string" && value.trim() !== "" ? Number(value) : value;
        return typeof converted === "number" && Number.isFinite(converted) ? converted : null;
      });
      const known = numbers.filter((value) => value !== null);
      const low = Math.min(...known);
      const high = Math.max(...known);
      if (known.length >= 2 && low < high) found.push({ name, values: numbers, low, high, log: low > 0 && high / low >= WIDE, measured: group === "metrics" });
    }
  }
  const metrics = found.filter((axis) => axis.measured);
  return [...found.filter((axis) => !axis.measured).slice(0, MOST_AXES - Math.min(3, metrics.length)), ...metrics.slice(0, 3)];
}

const label = (axis: Axis, value: number): string => (axis.measured ? number(value) : text(value));

export function ParallelCoordinates({ compared }: { compared: ComparedRuns }) {
  const axes = useMemo(() => axesOf(compared), [compared]);
  const last = axes.at(-1);
  if (axes.length < 2 || !last) return <p className="soft">Fewer than two numbers differ between these runs.</p>;
  const x = (index: number) => 60 + (index * (WIDTH - 120)) / (axes.length - 1);
  const share = ({ log, low, high }: Axis, value: number) => (log ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low));
  const y = (axis: Axis, value: number) => HEIGHT - 34 - share(axis, value) * (HEIGHT - 74);
  return (
    <div className="scroll" tabIndex={0} role="region" aria-label="Parallel coordinates">
      <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} style={{ display: "block", width: "100%", minWidth: "40rem" }} role="group" aria-label={`${compared.runs.length} runs on ${axes.length} axes`}>
        {compared.runs.map((run, index) => {
          const points = axes.map((axis, at) => ({ axis, at, value: axis.values[index] })).filter((one) => one.value !== null && one.value !== undefined);
          const path = points.map((one, at) => `${at === 0 ? "M" : "L"}${x(one.at)} ${y(one.axis, one.value as number)}`).join("");
          const end = last.values[index];
          const strength = end === null || end === undefined ? 0 : share(last, end);
          return (
            <a key={run.id} href={href(["runs", run.id])}>
              <path d={path} fill="none" stroke={`color-mix(in oklab, var(--s1) ${Math.round(strength * 100)}%, var(--s2))`} strokeWidth="1.6" strokeOpacity="0.75">
                <title>{`${run.name} ${run.id.slice(-4)}: ${last.name} ${number(end)}`}</title>
              </path>
            </a>
          );
        })}
        {axes.map((axis, index) => (
          <g key={axis.name}>
            <line x1={x(index)} x2={x(index)} y1="40" y2={HEIGHT - 34} stroke="var(--faint)" />
            <text x={x(index)} y="16" textAnchor="middle" style={{ fontWeight: 600 }}>
              {axis.name.length > 18 ? `${axis.name.slice(0, 17)}…` : axis.name}
              {axis.log && <tspan style={{ fontWeight: 400 }}> (log)</tspan>}
            </text>
            <text x={x(index)} y="33" textAnchor="middle">
              {label(axis, axis.high)}
            </text>
            <text x={x(index)} y={HEIGHT - 18} textAnchor="middle">
              {label(axis, axis.low)}
            </text>
          </g>
        ))}
      </svg>
    </div>
  );
}
