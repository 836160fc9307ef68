// Features by time windows: how far each was from its reference. The darker, the further; a mark means an alarm.
import { day } from "../format";
import type { HeatMap as Data } from "../api/schema";

const ROW = 20;
const LABEL = 150;
const MOST = 40;

/** `link`: the address of a window's incident, if it has one. */
export function HeatMap({ data, link }: { data: Data; link: (since: string) => string | undefined }) {
  const subjects = data.subjects.slice(0, MOST);
  const width = Math.max(6, Math.min(26, 900 / Math.max(1, data.windows.length)));
  const column = new Map(data.windows.map((at, index) => [at, index]));
  const row = new Map(subjects.map((name, index) => [name, index]));
  const cells = data.cells.filter((cell) => row.has(cell.subject));
  const most = Math.max(0.1, ...cells.map((cell) => cell.value).filter(Number.isFinite));
  const total = { width: LABEL + width * data.windows.length + 4, height: ROW * subjects.length + 22 };
  const every = Math.max(1, Math.ceil(data.windows.length / 8));
  return (
    <div className="heat">
      <svg width={total.width} height={total.height} role="group" aria-label={`Drift of ${subjects.length} features in ${data.windows.length} windows`}>
        {subjects.map((name, index) => (
          <text key={name} x={LABEL - 8} y={ROW * index + 14} textAnchor="end">
            {name.length > 22 ? `${name.slice(0, 21)}…` : name}
          </text>
        ))}
        {cells.map((cell) => {
          const x = LABEL + width * (column.get(cell.since) ?? 0);
          const y = ROW * (row.get(cell.subject) ?? 0);
          const strength = Math.min(1, Math.sqrt(Math.max(0, cell.value) / most));
          const target = cell.severity === "info" ? undefined : link(cell.since);
          const box = (
            <rect x={x} y={y} width={width} height={ROW - 2} fill={cell.severity === "alarm" ? "var(--s2)" : "var(--s1)"} fillOpacity={0.08 + 0.92 * strength}>
              <title>{`${cell.subject}, window from ${day(cell.since)}: ${cell.value.toPrecision(3)}${cell.severity === "info" ? "" : ` (${cell.severity})`}`}</title>
            </rect>
          );
          const key = `${cell.subject} ${cell.since}`;
          return target ? (
            <a key={key} href={target} aria-label={`Incident about ${cell.subject}, window from ${day(cell.since)}`}>
              {box}
            </a>
          ) : (
            <g key={key}>{box}</g>
          );
        })}
        {data.windows.map((at, index) =>
          index % every === 0 ? (
            <text key={at} x={LABEL + width * index} y={total.height - 6}>
              {day(at)}
            </text>
          ) : null,
        )}
      </svg>
    </div>
  );
}
