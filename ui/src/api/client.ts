// Requests to everloop's own API. Addresses are relative to the page, so that it works behind a proxy's path.
import { keepPreviousData, QueryClient, useQuery, useQueryClient } from "@tanstack/react-query";

export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly help: string | null = null,
  ) {
    super(message);
  }
}

const LONGEST_WAIT_MS = 60_000;

export const client = new QueryClient({
  defaultOptions: {
    queries: {
      staleTime: 5_000,
      refetchOnWindowFocus: false,
      retry: (count, error) => count < 2 && !(error instanceof ApiError && error.status < 500),
    },
  },
});

export async function request<T>(path: string, options: RequestInit = {}): Promise<T> {
  const signal = options.signal ?? AbortSignal.timeout(LONGEST_WAIT_MS);
  let response: Response;
  try {
    response = await fetch(`api/v1/${path}`, { ...options, signal, headers: { accept: "application/json", ...options.headers } });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new ApiError(0, "The server does not answer.", "Is it still running? Start it with: everloop up");
  }
  if (!response.ok) throw await failure(response);
  return (response.status === 204 ? undefined : await response.json()) as T;
}

async function failure(response: Response): Promise<ApiError> {
  try {
    const body = (await response.json()) as { error?: { message?: string; help?: string | null } };
    return new ApiError(response.status, body.error?.message ?? `The server answered ${response.status}.`, body.error?.help ?? null);
  } catch {
    return new ApiError(response.status, `The server answered ${response.status}.`);
  }
}

/** A list is divided among several parameters, because the server limits the length of each. */
export type Query = Record<string, string | number | readonly string[] | undefined>;

const LIST_PART = 40;

export function url(path: string, query: Query = {}): string {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    if (typeof value === "object") for (let at = 0; at < value.length; at += LIST_PART) parameters.append(name, value.slice(at, at + LIST_PART).join(","));
    else if (value !== undefined && value !== "") parameters.set(name, String(value));
  }
  const text = parameters.toString();
  return text ? `${path}?${text}` : path;
}

/** Read a text, such as a model card. */
export function useText(path: string | null, kinds: readonly string[] = []) {
  return useQuery<string, Error>({
    queryKey: [kinds.join(","), "text", path],
    enabled: path !== null,
    queryFn: async ({ signal }) => {
      const response = await fetch(`api/v1/${path}`, { signal });
      if (!response.ok) throw await failure(response);
      return response.text();
    },
  });
}

/** Read something. It is read again when an event of one of `kinds` arrives; the first part of the key is the kinds. */
export function useApi<T>(path: string | null, kinds: readonly string[] = [], options: { every?: number; keep?: boolean } = {}) {
  return useQuery<T, Error>({
    queryKey: [kinds.join(","), path],
    queryFn: ({ signal }) => request<T>(path as string, { signal }),
    enabled: path !== null,
    refetchInterval: options.every ?? false,
    ...(options.keep ? { placeholderData: keepPreviousData } : {}),
  });
}

/** Send something once and return what the server answers. Everything on the page is read again. */
export function useSend() {
  const queries = useQueryClient();
  return async <T>(path: string, method: "POST" | "PUT" | "PATCH" | "DELETE", body?: unknown): Promise<T> => {
    const sent = body === undefined ? {} : { body: JSON.stringify(body), headers: { "content-type": "application/json" } };
    const answer = await request<T>(path, { method, ...sent });
    await queries.invalidateQueries();
    return answer;
  };
}
