import { describe, expect, test } from "vitest";
import { align } from "./charts/align";
import { importances, spearman } from "./charts/rank_correlation";
import { isEnough } from "./components/access";
import { complete } from "./components/completion";
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
