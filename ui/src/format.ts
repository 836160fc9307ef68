// How values are shown. The zone of times stands below the navigation. Measured numbers keep four significant digits, so that they line up in a
// column; what people have written, such as parameters, stays as short as they wrote it.
import { useSyncExternalStore } from "react";

export type Zone = "utc" | "local";
const KEY = "everloop.zone";
let zone: Zone = (read(KEY) as Zone | null) ?? "utc";
const listeners = new Set<() => void>();

export function useZone(): [Zone, (next: Zone) => void] {
  const current = useSyncExternalStore(
    (listener) => {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    () => zone,
  );
  return [current, setZone];
}

function setZone(next: Zone): void {
  zone = next;
  write(KEY, next);
  for (const listener of listeners) listener();
}

/** Storage may be forbidden in private windows; then a choice lasts as long as the page. */
export function read(key: string): string | null {
  try {
    return window.localStorage.getItem(key);
  } catch {
    return null;
  }
}

export function write(key: string, value: string): void {
  try {
    window.localStorage.setItem(key, value);
  } catch {
    // See above.
  }
}

export function time(text: string | null | undefined, precise = false): string {
  if (!text) return "–";
  const moment = new Date(text);
  if (Number.isNaN(moment.getTime())) return text;
  return formatter(precise ? { ...MINUTES, second: "2-digit" } : MINUTES).format(moment);
}

const DAY: Intl.DateTimeFormatOptions = { month: "short", day: "numeric", year: "numeric" };
const MINUTES: Intl.DateTimeFormatOptions = { ...DAY, hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
const formatters = new Map<string, Intl.DateTimeFormat>();

/** To make a formatter takes longer than to draw a row of a table, so each is made once. */
function formatter(options: Intl.DateTimeFormatOptions): Intl.DateTimeFormat {
  const key = `${zone} ${Object.keys(options).join()}`;
  const known = formatters.get(key) ?? new Intl.DateTimeFormat("en-GB", { ...options, ...(zone === "utc" ? { timeZone: "UTC" } : {}) });
  formatters.set(key, known);
  return known;
}

export function day(text: string): string {
  return formatter(DAY).format(new Date(text));
}

export function zoneName(current: Zone): string {
  return current === "utc" ? "UTC" : Intl.DateTimeFormat().resolvedOptions().timeZone;
}

export function ago(text: string | null | undefined, now: string | undefined): string {
  if (!text || !now) return "";
  const seconds = (new Date(now).getTime() - new Date(text).getTime()) / 1000;
  if (seconds < 0) return "just now";
  return seconds < 45 ? "just now" : `${duration(seconds, 1)} ago`;
}

const UNITS: [number, string][] = [[86_400, "d"], [3_600, "h"], [60, "min"], [1, "s"]];

export function duration(seconds: number | null | undefined, parts = 2): string {
  if (seconds === null || seconds === undefined || Number.isNaN(seconds)) return "–";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const found: string[] = [];
  let rest = Math.round(seconds);
  for (const [size, unit] of UNITS) {
    const count = Math.floor(rest / size);
    if (count > 0 || found.length > 0) {
      if (count > 0) found.push(`${count} ${unit}`);
      rest -= count * size;
      if (found.length === parts) break;
    }
  }
  return found.slice(0, parts).join(" ");
}

export function count(value: number | null | undefined): string {
  return value === null || value === undefined ? "–" : value.toLocaleString("en-US");
}

export function number(value: unknown): string {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (Number.isInteger(value) && Math.abs(value) < 1e15) return value.toLocaleString("en-US").replace("-", "−");
  const size = Math.abs(value);
  if (size >= 1000 && size < 1e6) return Math.round(value).toLocaleString("en-US").replace("-", "−");
  const text = size >= 1e6 || size < 1e-4 ? value.toExponential(3).replace(/\.?0+e/, "e") : value.toPrecision(4);
  return text.replace("e+", "e").replaceAll("-", "−");
}

/** A number without padding: 0.1 and not 0.1000, 2013 and not 2,013. */
export function plain(value: number): string {
  if (!Number.isFinite(value)) return number(value);
  return String(Number(value.toPrecision(Number.isInteger(value) ? 15 : 6))).replace("e+", "e").replaceAll("-", "−");
}

export function bytes(size: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let value = size;
  let index = 0;
  while (value >= 1000 && index < units.length - 1) {
    value /= 1000;
    index += 1;
  }
  return `${index === 0 ? value : value.toPrecision(3)} ${units[index]}`;
}

export function text(value: unknown): string {
  if (value === null || value === undefined) return "–";
  if (typeof value === "number") return plain(value);
  return typeof value === "string" ? value : JSON.stringify(value);
}

/** Words for people: `rolled_back` becomes `rolled back`. */
export const words = (name: string): string => name.replaceAll("_", " ");

export const percent = (share: number): string => `${(100 * share).toFixed(share > 0.1 || share === 0 ? 0 : 1)} %`;

export const counted = (value: number, noun: string): string => `${count(value)} ${noun}${value === 1 ? "" : "s"}`;
