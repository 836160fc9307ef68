// Requests to everloop's own API. Addresses are relative to the page, so that it works behind a proxy's path.
import { keepPreviousData, QueryClient, useMutation, useQuery, useQueryClient } from "@tanstack/react-query";

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

export type Query = Record<string, string | number | undefined>;

export function url(path: string, query: Query = {}): string {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) if (value !== undefined && value !== "") parameters.set(name, String(value));
  const text = parameters.toString();
  return text ? `${path}?${text}` : path;
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

export function useAction<B>(path: (body: B) => string, method: "POST" | "PUT" | "PATCH" | "DELETE" = "POST") {
  const queries = useQueryClient();
  return useMutation<unknown, Error, B>({
    mutationFn: (body) =>
      request(path(body), { method, body: JSON.stringify(body), headers: { "content-type": "application/json" } }),
    onSuccess: () => queries.invalidateQueries(),
  });
}
