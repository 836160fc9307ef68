// What can be typed next in a filter of runs.
import type { RunColumns } from "../api/schema";

const FIELDS = ["name", "state", "loop", "trigger", "started_at", "ended_at", "seconds", "user", "error"];
const STATES = ["running", "finished", "failed", "interrupted", "lost"];
const MOST = 12;

/** What can be typed at the end of a filter: the word begun, and the words that may replace it. */
export function complete(filter: string, names: RunColumns | undefined): { begun: string; words: string[] } {
  const begun = /[^\s()=<>!,]*$/.exec(filter)?.[0] ?? "";
  const before = filter.slice(0, filter.length - begun.length).trimEnd();
  if (/\bstate\s*(=|!=)$/.test(before)) return { begun, words: STATES.map((one) => `'${one}'`).filter((one) => one.startsWith(begun) || one.slice(1).startsWith(begun)) };
  if (/(=|<|>|!)$/.test(before)) return { begun, words: [] };
  const word = /[^\s()]+$/.exec(before)?.[0] ?? "";
  const afterValue = /(['"0-9])$/.test(word) && /[=<>]/.test(before);
  if (afterValue) return { begun, words: ["and", "or"].filter((one) => one.startsWith(begun.toLowerCase())) };
  const quoted = (group: string, name: string) => `${group}.${/^[A-Za-z_][A-Za-z0-9_]*$/.test(name) ? name : JSON.stringify(name)}`;
  const known = [...FIELDS, ...(["metrics", "params", "tags"] as const).flatMap((group) => (names?.[group] ?? []).map((name) => quoted(group, name)))];
  const wanted = begun.toLowerCase();
  return { begun, words: known.filter((one) => one.toLowerCase().includes(wanted) && one !== begun).slice(0, MOST) };
}
