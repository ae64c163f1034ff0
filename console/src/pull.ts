// Bringing an image from its registry.

import { ask, lines } from "./api";

export interface Progress {
  /** What is done just now. */
  text: string;
  /** Of all bytes that are known about, from 0 to 1. */
  part: number | undefined;
}

interface Line {
  status?: string;
  id?: string;
  progressDetail?: { current?: number; total?: number };
  error?: string;
}

/** Brings it, and tells how far that is. */
export async function pull(image: string, told: (progress: Progress) => void): Promise<void> {
  const layers = new Map<string, { current: number; total: number }>();
  const answer = await ask("POST", `/images/create?fromImage=${encodeURIComponent(image)}`);
  for await (const { status, id, progressDetail, error } of lines<Line>(answer)) {
    if (error) throw new Error(error);
    if (id && progressDetail?.total) {
      layers.set(id, { current: progressDetail.current ?? 0, total: progressDetail.total });
    } else if (id && layers.has(id)) {
      const layer = layers.get(id);
      if (layer) layer.current = layer.total;
    }
    let [current, total] = [0, 0];
    for (const layer of layers.values()) {
      current += layer.current;
      total += layer.total;
    }
    const part = total ? current / total : undefined;
    const how = part === undefined ? (status ?? "…") : `${Math.floor(part * 100)} %`;
    told({ text: `Pulling ${image}: ${how}`, part });
  }
}
