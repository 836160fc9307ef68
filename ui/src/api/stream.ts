// The one stream of events: what they are about is read again, a moment later, so that a burst costs one request.
import { useSyncExternalStore } from "react";
import { client } from "./client";

export type StreamState = "connecting" | "live" | "lost";
type Message = { seq: number; kind: string; key: string; verb: string; at: string };

const GATHER_MS = 400;
let state: StreamState = "connecting";
let newest: Message | null = null;
const listeners = new Set<() => void>();
const waiting = new Set<string>();
let timer: ReturnType<typeof setTimeout> | undefined;

function set(next: StreamState): void {
  if (next === state) return;
  const returned = state === "lost" && next === "live";
  state = next;
  // What happened while the connection was lost is in the store, not in the stream.
  if (returned) void client.invalidateQueries();
  for (const listener of listeners) listener();
}

function refresh(kind: string): void {
  waiting.add(kind);
  timer ??= setTimeout(() => {
    timer = undefined;
    const kinds = new Set(waiting);
    waiting.clear();
    void client.invalidateQueries({
      predicate: ({ queryKey }) => kinds.has("*") || String(queryKey[0]).split(",").some((one) => kinds.has(one)),
    });
  }, GATHER_MS);
}

export function connect(): void {
  const source = new EventSource("api/v1/stream");
  source.onopen = () => set("live");
  source.onerror = () => {
    set("lost");
    // The browser gives up after some answers, such as 503; then a new connection is made.
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 5_000);
  };
  source.addEventListener("reset", () => refresh("*"));
  source.onmessage = (event: MessageEvent<string>) => {
    newest = JSON.parse(event.data) as Message;
    refresh(newest.kind);
    for (const listener of listeners) listener();
  };
}

function subscribe(listener: () => void): () => void {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

export const useStreamState = (): StreamState => useSyncExternalStore(subscribe, () => state);
