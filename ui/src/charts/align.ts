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

/** Bring series with their own x values onto one x axis; a value that a series lacks there is `undefined`, which lines skip. */
export function align(series: readonly Series[]): [number[], (number | null | undefined)[][]] {
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
