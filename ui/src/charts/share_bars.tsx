// Two distributions over the same cells, as pairs of bars: the reference and a window.
const HEIGHT = 110;
const WIDTH = 320;
const BOTTOM = 16;

export function ShareBars({ cells, reference, window: live, label }: { cells: string[]; reference: number[]; window: number[]; label: string }) {
  const most = Math.max(0.01, ...reference, ...live);
  const step = WIDTH / Math.max(1, cells.length);
  const bar = Math.max(1.5, step * 0.4);
  const height = (share: number) => (share / most) * (HEIGHT - BOTTOM - 4);
  return (
    <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} width="100%" role="img" aria-label={label} style={{ display: "block" }}>
      <line x1="0" x2={WIDTH} y1={HEIGHT - BOTTOM} y2={HEIGHT - BOTTOM} stroke="var(--line)" />
      {cells.map((cell, index) => {
        const before = reference[index] ?? 0;
        const now = live[index] ?? 0;
        const x = step * index + (step - 2 * bar) / 2;
        return (
          <g key={cell}>
            <title>{`${cell}: ${percent(before)} in the reference, ${percent(now)} in the window`}</title>
            <rect x={step * index} y="0" width={step} height={HEIGHT - BOTTOM} fill="transparent" />
            <rect x={x} y={HEIGHT - BOTTOM - height(before)} width={bar} height={height(before)} fill="var(--faint)" />
            <rect x={x + bar} y={HEIGHT - BOTTOM - height(now)} width={bar} height={height(now)} fill="var(--s2)" />
          </g>
        );
      })}
      <text x="0" y={HEIGHT - 3}>
        {short(cells[0])}
      </text>
      {cells.length > 1 && (
        <text x={WIDTH} y={HEIGHT - 3} textAnchor="end">
          {short(cells.at(-1))}
        </text>
      )}
    </svg>
  );
}

const percent = (share: number): string => `${(100 * share).toFixed(1)} %`;
const short = (text: string | undefined): string => (text === undefined ? "" : text.length > 20 ? `${text.slice(0, 19)}…` : text);
