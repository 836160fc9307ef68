// Addresses after `#`: every view has a link that reproduces it, below any path at which the page is served.
import { useSyncExternalStore } from "react";

export type Route = { path: string[]; query: URLSearchParams; raw: string };

export function parse(hash: string): Route {
  const raw = hash.replace(/^#\/?/, "");
  const mark = raw.indexOf("?");
  const path = (mark < 0 ? raw : raw.slice(0, mark)).split("/").filter(Boolean).map(decode);
  return { path, query: new URLSearchParams(mark < 0 ? "" : raw.slice(mark + 1)), raw };
}

export function href(path: readonly (string | number)[] | string, query: Record<string, string | undefined> = {}): string {
  const joined = typeof path === "string" ? path : path.map((part) => encodeURIComponent(String(part))).join("/");
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) if (value) parameters.set(name, value);
  const text = parameters.toString();
  return `#/${joined}${text ? `?${text}` : ""}`;
}

export function go(target: string, replace = false): void {
  if (replace) {
    window.history.replaceState(null, "", target);
    window.dispatchEvent(new HashChangeEvent("hashchange"));
  } else {
    window.location.hash = target;
  }
}

function subscribe(listener: () => void): () => void {
  window.addEventListener("hashchange", listener);
  return () => window.removeEventListener("hashchange", listener);
}

export function useRoute(): Route {
  return parse(useSyncExternalStore(subscribe, () => window.location.hash));
}

/** A part of an address that is not valid percent-encoding stays as it is. */
function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}
