// Requests to the server this page came from: Docker's Engine API, and Strata's own for what it lacks.

/** An answer that is no success: docker's body has one line that says why. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

export async function ask(method: string, path: string, body?: unknown, signal?: AbortSignal): Promise<Response> {
  const init: RequestInit = { method, signal: signal ?? null };
  if (body !== undefined) {
    init.headers = { "Content-Type": "application/json" };
    init.body = JSON.stringify(body);
  }
  let answer: Response;
  try {
    answer = await fetch(path, init);
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError(0, "the server does not answer");
  }
  if (!answer.ok) throw new ApiError(answer.status, await reason(answer));
  return answer;
}

async function reason(answer: Response): Promise<string> {
  const text = await answer.text();
  try {
    return String(JSON.parse(text).message ?? text);
  } catch {
    return text || answer.statusText || `status ${answer.status}`;
  }
}

export async function get<T>(path: string): Promise<T> {
  return (await ask("GET", path)).json() as Promise<T>;
}

export async function post<T>(path: string, body?: unknown): Promise<T | undefined> {
  const answer = await ask("POST", path, body);
  const text = await answer.text();
  return text ? (JSON.parse(text) as T) : undefined;
}

/** The values of an answer that is a JSON value a line, as they come. */
export async function* lines<T>(answer: Response): AsyncGenerator<T> {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of chunks(answer)) {
    const parts = (rest + decoder.decode(chunk, { stream: true })).split("\n");
    rest = parts.pop() ?? "";
    for (const part of parts) if (part.trim()) yield JSON.parse(part) as T;
  }
  if (rest.trim()) yield JSON.parse(rest) as T;
}

/** The bytes of an answer, as they come. */
export async function* chunks(answer: Response): AsyncGenerator<Uint8Array> {
  const reader = answer.body?.getReader();
  if (!reader) return;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}

/** A piece of a workload's output. */
export interface Piece {
  readonly isError: boolean;
  readonly bytes: Uint8Array;
}

/** What a workload writes: without a terminal each piece has a head of eight bytes that names its stream and length. */
export async function* pieces(answer: Response): AsyncGenerator<Piece> {
  if (answer.headers.get("content-type")?.includes("raw-stream")) {
    for await (const bytes of chunks(answer)) yield { isError: false, bytes };
    return;
  }
  let held = new Uint8Array(0);
  for await (const chunk of chunks(answer)) {
    const joined = new Uint8Array(held.length + chunk.length);
    joined.set(held);
    joined.set(chunk, held.length);
    held = joined;
    while (held.length >= 8) {
      const length = new DataView(held.buffer, held.byteOffset).getUint32(4);
      if (held.length < 8 + length) break;
      yield { isError: held[0] === 2, bytes: held.slice(8, 8 + length) };
      held = held.slice(8 + length);
    }
  }
}

/** What a promise failed for, in words. */
export function why(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

export type Isolation = "vm" | "container";

export interface Traffic {
  network: { received_bytes: number; sent_bytes: number } | null;
  block: { read_bytes: number; written_bytes: number } | null;
}

/** A row of /strata/v1/workloads. */
export interface Workload {
  id: string;
  name: string;
  image: string;
  isolation: Isolation;
  command: string[];
  publish: string[];
  tty: boolean;
  created_ms: number;
  state: {
    status: "created" | "starting" | "running" | "paused" | "restarting" | "exited" | "lost";
    started_ms: number | null;
    finished_ms: number | null;
    exit_code: number | null;
    error: string | null;
    restarts: number;
    health: { status: string } | null;
  };
  cpu_ns: number | null;
  memory_bytes: number | null;
  memory_limit_bytes: number | null;
  pids: number | null;
  traffic: Traffic | null;
}

export interface Image {
  Id: string;
  RepoTags: string[] | null;
  Created: number;
  Size: number;
  Containers: number;
}

export interface Snapshot {
  name: string;
  path: string;
  created_ms: number;
  command: string[];
  cpus: number | null;
  memory_bytes: number | null;
  size_bytes: number;
  broken: string | null;
}

const at = (id: string) => `/containers/${encodeURIComponent(id)}`;

export const start = (id: string) => post(`${at(id)}/start`);
export const stop = (id: string) => post(`${at(id)}/stop`);
export const pause = (id: string) => post(`${at(id)}/pause`);
export const resume = (id: string) => post(`${at(id)}/unpause`);
export const remove = (id: string) => ask("DELETE", `${at(id)}?force=1&v=1`);
export const fork = (id: string) =>
  post<{ name: string; id: string }[]>(`/strata/v1/workloads/${encodeURIComponent(id)}/fork`, { count: 1 });
