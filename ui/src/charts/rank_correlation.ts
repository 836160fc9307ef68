// Which parameters go with a metric: Spearman's rank correlation, with mean ranks for equal values.
import type { ComparedRuns } from "../api/schema";

export type Importance = { name: string; correlation: number; runs: number };

const LEAST_RUNS = 4;

/** Rank correlation of two lists of equal length; null if one of them does not vary. */
export function spearman(xs: readonly number[], ys: readonly number[]): number | null {
  const a = ranks(xs);
  const b = ranks(ys);
  const middle = (a.length + 1) / 2;
  let both = 0;
  let left = 0;
  let right = 0;
  a.forEach((rank, index) => {
    const dx = rank - middle;
    const dy = (b[index] as number) - middle;
    both += dx * dy;
    left += dx * dx;
    right += dy * dy;
  });
  return left === 0 || right === 0 ? null : both / Math.sqrt(left * right);
}

function ranks(values: readonly number[]): number[] {
  const order = values.map((_, index) => index).sort((i, j) => (values[i] as number) - (values[j] as number));
  const found = new Array<number>(values.length);
  for (let start = 0; start < order.length; ) {
    let end = start;
    while (end + 1 < order.length && values[order[end + 1] as number] === values[order[start] as number]) end += 1;
    for (let at = start; at <= end; at += 1) found[order[at] as number] = (start + end) / 2 + 1;
    start = end + 1;
  }
  return found;
}

export function finite(value: unknown): number | null {
  const converted = typeof value === "string" && value.trim() !== "" ? Number(value) : value;
  return typeof converted === "number" && Number.isFinite(converted) ? converted : null;
}

/** Numeric parameters by the strength of their correlation with a metric, strongest first. */
export function importances(compared: ComparedRuns, metric: string): Importance[] {
  const target = (compared.groups?.["metrics"]?.[metric] ?? []).map(finite);
  const found: Importance[] = [];
  for (const [name, values] of Object.entries(compared.groups?.["params"] ?? {})) {
    const pairs = values.map((value, index) => [finite(value), target[index] ?? null] as const).filter((pair): pair is readonly [number, number] => pair[0] !== null && pair[1] !== null);
    if (pairs.length < LEAST_RUNS) continue;
    const correlation = spearman(pairs.map(([x]) => x), pairs.map(([, y]) => y));
    if (correlation !== null) found.push({ name, correlation, runs: pairs.length });
  }
  return found.sort((one, other) => Math.abs(other.correlation) - Math.abs(one.correlation));
}
