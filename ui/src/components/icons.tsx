// Small line drawings, 24 by 24, drawn with the current colour.
const PATHS: Record<string, string> = {
  loop: "M20 12a8 8 0 1 1-2.6-5.9M20 3v4.5h-4.5",
  runs: "M4 6h16M4 12h16M4 18h10",
  data: "M4 6c0-1.7 3.6-3 8-3s8 1.3 8 3-3.6 3-8 3-8-1.3-8-3zm0 0v12c0 1.7 3.6 3 8 3s8-1.3 8-3V6M4 12c0 1.7 3.6 3 8 3s8-1.3 8-3",
  models: "M12 3l8 4.5v9L12 21l-8-4.5v-9L12 3zm0 9l8-4.5M12 12v9M12 12L4 7.5",
  endpoints: "M4 12h6m4 0h6M10 8v8m4-8v8M7 5v14M17 5v14",
  monitor: "M3 13h4l2.5-7 4 13 2.5-6H21",
  replay: "M12 8v4l3 2M4.5 9A8 8 0 1 1 4 13M4 4v5h5",
  traces: "M4 5h10M8 10h10M6 15h6M10 20h9",
  settings: "M4 7h10M18 7h2M4 17h2M10 17h10M16 4.5v5M8 14.5v5",
  train: "M5 19l5-6 4 3 5-9M19 7h-4M19 7v4",
  gates: "M5 12.5l4.5 4.5L19 7.5",
  release: "M12 20V5M6 11l6-6 6 6",
  serve: "M4 7h16v5H4zM4 12h16v5H4zM8 9.5h.01M8 14.5h.01",
  watch: "M2.5 12S6 5.5 12 5.5 21.5 12 21.5 12 18 18.5 12 18.5 2.5 12 2.5 12zM12 9.5a2.5 2.5 0 1 0 0 5 2.5 2.5 0 0 0 0-5z",
  retrain: "M4 12a8 8 0 0 1 13.7-5.6L20 8.5M20 4v4.5h-4.5M20 12a8 8 0 0 1-13.7 5.6L4 15.5M4 20v-4.5h4.5",
  menu: "M4 6h16M4 12h16M4 18h16",
};

export const glyph = (name: string): string => PATHS[name] ?? "";

export function Icon({ name }: { name: string }) {
  return (
    <svg viewBox="0 0 24 24" fill="none" stroke="currentColor" strokeWidth="1.8" strokeLinecap="round" strokeLinejoin="round" aria-hidden="true">
      <path d={glyph(name)} />
    </svg>
  );
}

export function Logo() {
  return (
    <svg viewBox="0 0 32 32" aria-hidden="true">
      <circle cx="16" cy="16" r="11" fill="none" stroke="var(--accent)" strokeWidth="5" strokeDasharray="56 14" strokeLinecap="round" transform="rotate(-60 16 16)" />
      <circle cx="16" cy="5" r="4" fill="var(--s3)" />
    </svg>
  );
}
