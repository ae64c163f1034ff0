// The workloads as they are just now, for all pages: asked for every two seconds, and at once when something happens.

import { useEffect, useState } from "preact/hooks";
import { ask, get, lines, why, type Workload } from "./api";

const PERIOD_MS = 2000;

export interface Live {
  workloads: Workload[] | undefined;
  /** Percent of one processor, by id, since the list before. */
  cpu: ReadonlyMap<string, number>;
  failure: string;
}

let live: Live = { workloads: undefined, cpu: new Map(), failure: "" };
let before = new Map<string, { ns: number; at: number }>();
const watchers = new Set<(live: Live) => void>();
let asked: Promise<void> | undefined;

async function look() {
  try {
    const workloads = await get<Workload[]>("/strata/v1/workloads");
    const at = performance.now();
    const cpu = new Map<string, number>();
    const now = new Map<string, { ns: number; at: number }>();
    for (const { id, cpu_ns } of workloads) {
      if (cpu_ns === null) continue;
      const last = before.get(id);
      now.set(id, { ns: cpu_ns, at });
      if (last && at > last.at) cpu.set(id, Math.max(0, (cpu_ns - last.ns) / ((at - last.at) * 1e4)));
    }
    before = now;
    workloads.sort((a, b) => b.created_ms - a.created_ms);
    live = { workloads, cpu, failure: "" };
  } catch (error) {
    live = { ...live, failure: why(error) };
  }
  watchers.forEach((watch) => watch(live));
}

/** Asks anew; who asks while that is under way gets an answer of after the call. */
export async function refresh(): Promise<void> {
  await asked;
  asked ??= look().finally(() => (asked = undefined));
  return asked;
}

/** Until the page is seen, or not seen any more. */
function seen(is: boolean, signal?: AbortSignal): Promise<void> {
  return new Promise((done) => {
    const look = () => {
      if (document.hidden === is && !signal?.aborted) return;
      document.removeEventListener("visibilitychange", look);
      done();
    };
    document.addEventListener("visibilitychange", look);
    signal?.addEventListener("abort", look);
    look();
  });
}

/**
 * Follows what happens for as long as the page lives; a connection that ends is made anew. A page that nobody sees has none: a
 * browser has six for all pages of a server.
 */
export async function follow() {
  setInterval(() => document.hidden || void refresh(), PERIOD_MS);
  document.addEventListener("visibilitychange", () => document.hidden || void refresh());
  const filters = encodeURIComponent(JSON.stringify({ type: ["container"] }));
  for (;;) {
    await seen(true);
    const leave = new AbortController();
    void seen(false, leave.signal).then(() => leave.abort());
    try {
      const events = await ask("GET", `/events?filters=${filters}`, undefined, leave.signal);
      for await (const _ of lines(events)) void refresh();
    } catch {
      // The list says what is wrong.
    }
    leave.abort();
    await new Promise((wait) => setTimeout(wait, PERIOD_MS));
  }
}

/** Whether anybody sees the page. */
export function useSeen(): boolean {
  const [is, setIs] = useState(!document.hidden);
  useEffect(() => {
    const look = () => setIs(!document.hidden);
    document.addEventListener("visibilitychange", look);
    return () => document.removeEventListener("visibilitychange", look);
  }, []);
  return is;
}

export function useLive(): Live {
  const [seen, setSeen] = useState(live);
  useEffect(() => {
    watchers.add(setSeen);
    void refresh();
    return () => void watchers.delete(setSeen);
  }, []);
  return seen;
}
