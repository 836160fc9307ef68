import { describe, expect, test } from "vitest";
import { align, MOST_PLACES } from "./charts/align";
import { blocksOf } from "./components/markdown";
import { differences } from "./pages/models_page";
import { typed } from "./pages/try_request";
import { importances, spearman } from "./charts/rank_correlation";
import { isEnough } from "./components/access";
import { complete } from "./components/completion";
import { number, plain } from "./format";
import { parse } from "./router";

const names = { metrics: ["auc", "val/loss"], params: ["lr"], tags: [] };

describe("completion of filters", () => {
  test.each([
    ["", "name"],
    ["met", "metrics.auc"],
    ["metrics.auc > 0.8 a", "and"],
    ["state = ", "'finished'"],
    ["(pa", "params.lr"],
  ])("%s offers %s", (typed, offered) => {
    expect(complete(typed, names).words).toContain(offered);
  });

  test("names with other characters are quoted", () => {
    expect(complete("val", names).words).toEqual(['metrics."val/loss"']);
  });

  test("nothing is offered for a number", () => {
    expect(complete("metrics.auc > ", names).words).toEqual([]);
  });
});

describe("addresses", () => {
  test("parts are decoded, and a broken one stays as it is", () => {
    expect(parse("#/models/a%2Fb/1").path).toEqual(["models", "a/b", "1"]);
    expect(parse("#/models/100%").path).toEqual(["models", "100%"]);
    expect(parse("#/runs?filter=a%20%3D%201").query.get("filter")).toBe("a = 1");
  });
});

describe("series with different x values", () => {
  test("share one axis, and keep their own gaps", () => {
    const [xs, columns] = align([
      { name: "a", x: [1, 3], y: [10, null] },
      { name: "b", x: [2, 3], y: [5, 6] },
    ]);
    expect(xs).toEqual([1, 2, 3]);
    expect(columns).toEqual([
      [10, undefined, null],
      [undefined, 5, 6],
    ]);
  });
});

test("very many different x values are moved by less than a pixel, and every value stays", () => {
  const series = Array.from({ length: 60 }, (_, number) => {
    const x = Array.from({ length: 200 }, (_, index) => index * 5000 + number * 77 + (index % 3));
    return { name: String(number), x, y: x.map((one) => one / 2) };
  });
  const [xs, columns] = align(series);
  expect(xs.length).toBeLessThanOrEqual(MOST_PLACES);
  const width = ((xs.at(-1) as number) - (xs[0] as number)) / (MOST_PLACES - 1);
  columns.forEach((column, number) => {
    const found = column.flatMap((y, index) => (typeof y === "number" ? [[xs[index] as number, y] as const] : []));
    expect(found.map(([, y]) => y)).toEqual(series[number]?.y);
    for (const [x, y] of found) expect(Math.abs(x - 2 * y)).toBeLessThanOrEqual(width);
  });
});

describe("values of a form, as the model's signature has them", () => {
  test.each([
    ["float", "1.5", 1.5],
    ["int", "abc", "abc"],
    ["float", " ", " "],
    ["float", "", null],
    ["bool", "true", true],
    ["bool", "yes", "yes"],
    ["string", "1", "1"],
  ])("%s %j", (type, value, expected) => {
    expect(typed({ name: "x", type }, value)).toBe(expected);
  });

  test("a category keeps its type", () => {
    expect(typed({ name: "x", type: "int", categories: [1, 2] }, "2")).toBe(2);
  });
});

test("a model card's Markdown becomes blocks, and text stays text", () => {
  const blocks = blocksOf("# A <b>\n\n| x | y\\|z |\n|---|---|\n| 1 | 2 |\n- one\n- two\nplain\nmore\n```\ncode\n");
  expect(blocks).toEqual([
    { kind: "heading", level: 1, text: "A <b>" },
    { kind: "table", rows: [["x", "y|z"], ["1", "2"]] },
    { kind: "list", items: ["one", "two"] },
    { kind: "text", text: "plain more" },
    { kind: "code", text: "code\n" },
  ]);
});

test("differences of two versions are listed by their paths, with both values and the change", () => {
  const found = differences({ a: "m@1", b: "m@2", metrics: { auc: { a: 0.5, b: 0.75, change: 0.25 } }, packages: { httpx: { a: null, b: "0.28" } }, empty: {}, order: [1, 2] });
  expect(found).toEqual([
    { path: "metrics.auc", before: "0.5000", after: "0.7500", change: "+0.2500" },
    { path: "packages.httpx", before: "–", after: "0.28", change: "" },
    { path: "order", before: "", after: "1 → 2", change: "" },
  ]);
});

describe("numbers", () => {
  test.each([
    [0.1, "0.1000", "0.1"],
    [12345.67, "12,346", "12345.7"],
    [2013, "2,013", "2013"],
    [1e-5, "1e−5", "0.00001"],
    [-0.25, "−0.2500", "−0.25"],
    [1.5e7, "15,000,000", "15000000"],
    [1234567.8, "1.235e6", "1234570"],
    [Infinity, "∞", "∞"],
  ])("%d is %s when measured, and %s as somebody wrote it", (value, measured, written) => {
    expect([number(value), plain(value)]).toEqual([measured, written]);
  });
});

describe("rank correlation", () => {
  test("agrees with scipy.stats.spearmanr, ties included", () => {
    expect(spearman([1, 2, 3, 4, 5], [5, 6, 7, 8, 7])).toBeCloseTo(0.8207826816681233, 12);
    expect(spearman([1, 1, 2], [3, 2, 1])).toBeCloseTo(-0.8660254037844387, 12);
    expect(spearman([1, 1, 1], [3, 2, 1])).toBeNull();
  });

  test("orders numeric parameters by strength, and leaves out texts and runs without the metric", () => {
    const groups = { params: { lr: ["0.1", 0.2, 0.3, 0.4, 9], depth: [1, 3, 2, 4, 9], name: ["a", "b", "c", "d", "e"] }, metrics: { auc: [4, 3, 2, 1, null] } };
    const found = importances({ runs: [], groups } as never, "auc");
    expect(found.map((one) => [one.name, one.runs])).toEqual([["lr", 4], ["depth", 4]]);
    expect(found[0]?.correlation).toBeCloseTo(-1, 12);
  });
});

test("a role includes those below it", () => {
  expect(isEnough("editor", "viewer")).toBe(true);
  expect(isEnough("editor", "approver")).toBe(false);
  expect(isEnough(undefined, "viewer")).toBe(false);
});
