// Series of a chart, and how they are brought onto one x axis.
export type Series = {
  name: string;
  x: number[];
  y: (number | null)[];
  low?: (number | null)[];
  high?: (number | null)[];
  colour?: number;
  dashed?: boolean;
  points?: boolean;
};

/** More places than this on an x axis are not told apart by anyone, and every series has a column of this length. */
export const MOST_PLACES = 4_000;

/** Bring series with their own x values onto one x axis; a value that a series lacks there is `undefined`, which lines skip. */
export function align(series: readonly Series[]): [number[], (number | null | undefined)[][]] {
  return exact(series.length > 1 ? coarse(series) : series);
}

/** Series with the same x values, or with others that are moved to the nearest of evenly spaced places. No value is lost as long as there is a free place behind it. */
function coarse(series: readonly Series[]): readonly Series[] {
  const all = new Set(series.flatMap((one) => one.x));
  if (all.size <= MOST_PLACES) return series;
  let low = Infinity;
  let high = -Infinity;
  for (const x of all) {
    low = Math.min(low, x);
    high = Math.max(high, x);
  }
  const width = (high - low) / (MOST_PLACES - 1);
  return series.map((one) => {
    let before = -1;
    return {
      ...one,
      x: one.x.map((x) => {
        before = Math.min(MOST_PLACES - 1, Math.max(before + 1, Math.round((x - low) / width)));
        return low + before * width;
      }),
    };
  });
}

function exact(series: readonly Series[]): [number[], (number | null | undefined)[][]] {
  const xs = [...new Set(series.flatMap((one) => one.x))].sort((a, b) => a - b);
  const place = new Map(xs.map((x, index) => [x, index]));
  const columns: (number | null | undefined)[][] = [];
  const spread = (one: Series, values: (number | null)[]) => {
    const column: (number | null | undefined)[] = new Array<undefined>(xs.length).fill(undefined);
    one.x.forEach((x, index) => {
      column[place.get(x) as number] = values[index] ?? null;
    });
    return column;
  };
  for (const one of series) {
    columns.push(spread(one, one.y));
    if (one.low && one.high) columns.push(spread(one, one.low), spread(one, one.high));
  }
  return [xs, columns];
}
